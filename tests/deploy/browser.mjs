// The real Chromium, for the tests of pages.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { chromium } from 'playwright-core'
import { find } from '../../scripts/needs.mjs'

export async function browser(t) {
  // A fresh profile each time; nothing that talks to anybody by itself.
  const launched = await chromium.launch({
    executablePath: which(find('chromium')),
    args: [
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  })
  t.after(() => launched.close())
  return launched
}

function which(command) {
  assert.ok(command, 'no Chromium: npm run test:deploy installs it')
  if (path.isAbsolute(command)) return command
  const found = process.env.PATH.split(path.delimiter).map((folder) => path.join(folder, command))
  return found.find((file) => {
    try {
      return readFileSync(file).length > 0
    } catch {
      return false
    }
  })
}
