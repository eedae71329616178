// The file store: a full disk, a read-only one, limits, other programs at the same file, many accounts.
import { spawn, spawnSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { eventually, has, login, sleep } from '../kit.mjs'
import { Skip } from '../row.mjs'

const kind = 'file'
const BUSY = { life: 2, env: { KIRO_MAX_INFLIGHT_PER_ACCOUNT: '1', KIRO_ACCOUNT_WAIT: '10s' } }
/** Seldom enough that most kills find nobody refreshing. */
const OFTEN = { ...BUSY, life: 4 }
/** A lock is waited for 5 s: longer than a token lives otherwise. */
const CALM = { life: 12 }
const MB = 2 ** 20
/** Reading the file, writing it anew and syncing it, on a machine that is busy. */
const SAVING = 250

/** Nothing fails while the file goes through something, nothing is lost after it. */
function unnoticed({ name, short, seconds = 8, pace = BUSY, place, begin, end }) {
  return {
    kind,
    name,
    short,
    load: `20 requests/s, an hour of life is ${pace.life} s`,
    async run(t) {
      const upstream = await t.stage.upstream({ life: pace.life })
      const { store, by } = (await place?.(t)) ?? { store: t.stage.file({ accounts: 12, life: pace.life }) }
      const server = await t.stage.server({ store, upstream, by, ...pace })
      store.inside = `/proc/${server.pid}/root`
      const load = t.stage.load(server, { rate: 20 })
      await sleep(1500)
      const before = (await upstream.refreshes()).refreshes
      await begin({ t, store, server })
      await sleep(1000 * seconds)
      const { refreshes } = await upstream.refreshes()
      await end({ t, store, server })
      t.over()
      await sleep(2500)
      t.take(await load.stop())
      t.note(`${refreshes - before} refreshes meanwhile`)
      const seen = { accounts: () => store.accounts(by ? store.inside + store.file : store.file) }
      await t.whole({ store: seen, upstream })
    },
  }
}

/** A file store on a tmpfs of its own, in a mount namespace of the server's. */
function onTmpfs(t, size) {
  if (!has('unshare') || spawnSync('unshare', ['-rm', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt']).status !== 0) {
    throw new Skip('no tmpfs can be mounted here (unshare -rm)')
  }
  const seed = t.stage.file({ accounts: 12, life: BUSY.life })
  const folder = path.join(t.stage.folder, 'disk')
  mkdirSync(folder)
  const store = Object.assign(Object.create(Object.getPrototypeOf(seed)), { file: path.join(folder, 'accounts.json') })
  const prepare = 'mount -t tmpfs -o size=$1,mode=700 tmpfs "$2" && cp -p "$3" "$2/" && shift 3 && exec "$@"'
  return { store, by: ['unshare', '-rm', 'sh', '-c', prepare, 'sh', size, folder, seed.file] }
}

export const rows = [
  unnoticed({
    name: 'the disk is full (tmpfs)',
    short: true,
    place: (t) => onTmpfs(t, '256k'),
    begin({ t, store }) {
      const fill = `${store.inside}${path.dirname(store.file)}/fill`
      spawnSync('dd', ['if=/dev/zero', `of=${fill}`, 'bs=4096'], { stdio: 'ignore' })
      let refused = false
      try {
        writeFileSync(`${fill}-more`, 'x'.repeat(8192))
      } catch {
        refused = true
      }
      t.expect(refused, 'the disk is not full')
    },
    end({ store }) {
      for (const name of ['fill', 'fill-more']) rmSync(`${store.inside}${path.dirname(store.file)}/${name}`, { force: true })
    },
  }),
  unnoticed({
    name: 'the disk turns read-only',
    place: (t) => onTmpfs(t, '1m'),
    begin: (place) => remount(place, 'ro'),
    end: (place) => remount(place, 'rw'),
  }),
  unnoticed({
    name: 'files may not be larger than 512 bytes (prlimit --fsize)',
    short: true,
    begin({ server }) {
      if (!has('prlimit')) throw new Skip('no prlimit')
      spawnSync('prlimit', ['--fsize=512:unlimited', '--pid', String(server.pid)])
    },
    end({ server }) {
      spawnSync('prlimit', ['--fsize=unlimited:unlimited', '--pid', String(server.pid)])
    },
  }),
  unnoticed({
    name: 'another program holds the lock file for 9 s',
    short: true,
    pace: CALM,
    seconds: 9,
    begin({ t, store }) {
      if (!has('flock')) throw new Skip('no flock')
      const holder = spawn('flock', [path.join(path.dirname(store.file), 'accounts.json.lock'), 'sleep', '9'], { stdio: 'ignore' })
      t.stage.after(() => holder.kill('SIGKILL'))
    },
    end: () => {},
  }),
  unnoticed({
    name: 'the file is cut in half, and its owner puts it back 4 s later',
    seconds: 4,
    begin({ store }) {
      store.whole = readFileSync(store.file)
      truncateSync(store.file, store.whole.length >> 1)
    },
    end({ store }) {
      writeFileSync(store.file, store.whole)
    },
  }),
  {
    kind,
    name: 'the server is killed ten times while it saves tokens',
    load: '20 requests/s, an hour of life is 4 s',
    async run(t) {
      const upstream = await t.stage.upstream({ life: OFTEN.life })
      const store = t.stage.file({ accounts: 12, life: OFTEN.life })
      const unsure = new Set()
      for (let n = 0; n < 10; n++) {
        const server = await t.stage.server({ store, upstream, ...OFTEN, name: 'victim' })
        const load = t.stage.load(server, { rate: 20 })
        await sleep(1500 + 500 * Math.random())
        await server.process.kill()
        const died = Date.now()
        t.take((await load.stop()).filter(({ lost }) => lost !== 'ECONNREFUSED'), { breaks: /ECONNRESET|broke off|socket hang up/ })
        // A token that upstream gave in the last instants can't have reached anything.
        for (const [root, { refreshed_ms: at }] of Object.entries(await upstream.accounts())) {
          if (died - at < SAVING) unsure.add(Number(root.slice(login('').length)))
        }
        JSON.parse(readFileSync(store.file, 'utf8'))
      }
      const last = await t.stage.server({ store, upstream, ...OFTEN, name: 'victim' })
      t.over()
      const load = t.stage.load(last, { rate: 20 })
      await sleep(2000)
      t.take(await load.stop())
      if (unsure.size > 0) t.note(`${unsure.size} accounts were refreshed within ${SAVING} ms of a kill`)
      await t.whole({ store, upstream, counted: null, lostLogins: [...unsure], dead: 10 * unsure.size })
    },
  },
  {
    kind,
    name: '4,000 accounts in a file, each with an access token that has ended',
    load: '20 requests/s',
    alone: true,
    async run(t) {
      const accounts = t.of({ short: 500, normal: 4000 })
      const upstream = await t.stage.upstream({ life: 3600 })
      const store = t.stage.file({ accounts, life: 0 })
      const size = statSync(store.file).size
      // Read anew as by default, not as often as elsewhere here: what is measured is what it writes.
      const server = await t.stage.server({ store, upstream, env: { KIRO_ACCOUNT_CACHE_TTL: '5s' } })
      const load = t.stage.load(server, { rate: 20 })
      const all = async () => (await upstream.refreshes()).refreshes >= accounts
      const began = performance.now()
      t.expect(await eventually(all, 180_000, 500), `${(await upstream.refreshes()).refreshes} of ${accounts} accounts were refreshed`)
      const took = performance.now() - began
      t.take(await load.stop())
      await t.whole({ store, upstream })
      const written = server.written()
      t.note(`all refreshed in ${(took / 1000).toFixed(0)} s, ${Math.round(written / MB)} MiB written for a file of ${(size / MB).toFixed(1)} MiB`)
      const writes = written / size / (took / 1000)
      t.expect(writes < 4, `the file was written ${writes.toFixed(1)} times a second`)
    },
  },
]

function remount({ t, store, server }, mode) {
  const folder = path.dirname(store.file)
  const inside = ['-t', String(server.pid), '-U', '-m', '--preserve-credentials']
  const done = spawnSync('nsenter', [...inside, 'mount', '-o', `remount,${mode}`, folder], { encoding: 'utf8' })
  t.expect(done.status === 0, `remount ${mode}: ${done.stderr ?? done.error}`)
}
