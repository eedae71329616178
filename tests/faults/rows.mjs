// The whole catalogue, in the order of the table.
import { rows as attack } from './rows/attack.mjs'
import { rows as client } from './rows/client.mjs'
import { rows as clock } from './rows/clock.mjs'
import { rows as file } from './rows/file.mjs'
import { rows as network } from './rows/network.mjs'
import { rows as process } from './rows/process.mjs'
import { rows as store } from './rows/store.mjs'
import { rows as upstream } from './rows/upstream.mjs'

export const ROWS = [...upstream, ...network, ...store, ...file, ...process, ...client, ...clock, ...attack]
