// Builds the addon and what is generated with it: index.js (the loader), index.d.ts (the types).
//
//   node scripts/build.mjs            debug, and the debug kiro-server beside it (one compilation serves both)
//   node scripts/build.mjs --release  what is published
import { readFileSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { installPackages, needRust, root, run } from './steps.mjs'

const require = createRequire(import.meta.url)

export async function build(release) {
  needRust()
  if (!(await installPackages())) return false
  const args = ['napi', 'build', '--platform', ...(release ? ['--release'] : ['--features', 'server'])]
  if (!(await run('npx', ['--no-install', ...args]))) return false
  if (!release && !(await run('cargo', ['build', '--features', 'server', '--bin', 'kiro-server']))) return false
  const types = path.join(root, 'index.d.ts')
  const before = readFileSync(types, 'utf8')
  writeFileSync(types, finishTypes(before, JSON.parse(require('../index.js').settings())))
  return true
}

/** napi writes what Rust knows. Here the options are added, from the settings' table, and what only lib/ uses is left out. */
function finishTypes(types, settings) {
  return types
    .split(/\n\n(?=\S)/)
    .filter((declaration) => !/@internal|__napiBindingTarget/.test(declaration))
    .join('\n\n')
    .replace(/^ *\/\/ <settings>\n/m, settings.map(option).join(''))
    .replace('export declare class KiroGateway {\n', 'export declare class KiroGateway {\n  private constructor()\n')
    .trimEnd()
    .concat('\n')
}

/** One row of the table (src/config.rs) as a property of GatewayOptions. */
function option({ js, env, form, default: value, meaning, type }) {
  const allowed = type === 'string' && form !== 'a text' ? [`Must be ${form}.`] : []
  const given = value === '' ? [] : [`@default ${js.endsWith('Ms') ? milliseconds(value) : value}`]
  const lines = [meaning, ...allowed, `Environment: \`${env}\`.`, ...given]
  return `  /**\n${lines.map((line) => `   * ${line}\n`).join('')}   */\n  ${js}?: ${type}\n`
}

/** `1m30s` and the like. */
function milliseconds(text) {
  const unit = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }
  return [...text.matchAll(/(\d+)(ms|s|m|h)/g)].reduce((sum, [, n, u]) => sum + Number(n) * unit[u], 0)
}

if (process.argv[1] === path.join(root, 'scripts', 'build.mjs')) {
  const ok = await build(process.argv.includes('--release'))
  process.exit(ok ? 0 : 1)
}
