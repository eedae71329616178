// What may come in with a dependency: licences, bans and sources by deny.toml, for every target and feature.
//
// cargo-deny does the check where it is installed. Without it this script reads the same deny.toml and checks the same
// three things over `cargo metadata`: building cargo-deny takes longer than all other gates together, and a machine that
// only runs the tests shouldn't need it. The public workflow runs the real one, with advisories.
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { conclude, isProgram, needRust, root, totals } from './steps.mjs'

/** Checks, and prints each fault; true when there is none. */
export function deny() {
  const installed = spawnSync('cargo', ['deny', '--version'], { cwd: root, encoding: 'utf8' })
  const problems = installed.status === 0 ? byCargoDeny() : byMetadata()
  totals[problems.length === 0 ? 'passed' : 'failed'] += 1
  for (const problem of problems) console.log(`  ${problem}`)
  const by = installed.status === 0 ? installed.stdout.trim() : 'scripts/deny.mjs'
  console.log(`${problems.length === 0 ? 'ok' : 'FAILED'}: licences, bans and sources of dependencies (${by})`)
  return problems.length === 0
}

function byCargoDeny() {
  const checked = spawnSync('cargo', ['deny', '--all-features', 'check', 'licenses', 'bans', 'sources'], {
    cwd: root,
    stdio: 'inherit',
  })
  return checked.status === 0 ? [] : ['cargo deny says no: see above']
}

function byMetadata() {
  const asked = spawnSync('cargo', ['metadata', '--format-version', '1', '--all-features', '--locked'], {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 256 * 1024 * 1024,
  })
  if (asked.status !== 0) return [`cargo metadata: ${asked.stderr || asked.error?.message}`]
  return problemsOf(JSON.parse(asked.stdout), rules(readFileSync(path.join(root, 'deny.toml'), 'utf8')))
}

/** The packages of `cargo metadata` that break the rules. */
export function problemsOf({ packages }, { allow, exceptions, banned }) {
  const problems = []
  for (const { name, version, license, source, license_file: file } of packages) {
    // Ours has no source; everything else comes from the registry that Cargo.lock pins by checksum.
    if (source !== null && !/^(registry|sparse)\+https:\/\/(github\.com\/rust-lang\/|index\.crates\.io\/)/.test(source)) {
      problems.push(`${name} ${version}: comes from ${source}`)
    }
    if (banned.has(name)) problems.push(`${name} ${version}: is banned: ${banned.get(name)}`)
    if (!license) {
      problems.push(`${name} ${version}: says no licence${file ? `, only the file ${file}` : ''}`)
    } else if (!satisfied(license, new Set([...allow, ...(exceptions.get(name) ?? [])]))) {
      problems.push(`${name} ${version}: licence ${license} is not allowed`)
    }
  }
  return problems
}

/** The part of deny.toml that is checked here; other forms of TOML than those it has are an error. */
export function rules(text) {
  const lines = text.split('\n').map((line) => line.replace(/(^|\s)#.*$/, ''))
  const sections = new Map([['', '']])
  let name = ''
  for (const line of lines) {
    const head = /^\[([\w.-]+)\]\s*$/.exec(line)
    if (head) name = head[1]
    sections.set(name, `${sections.get(name) ?? ''}${head ? '' : line}\n`)
  }
  const list = (section, key) => new RegExp(`^${key} = \\[([\\s\\S]*?)^\\]|^${key} = \\[(.*)\\]$`, 'm').exec(sections.get(section) ?? '')
  const strings = (text) => [...text.matchAll(/"([^"]*)"/g)].map(([, word]) => word)
  const found = list('licenses', 'allow')
  if (!found) throw new Error('deny.toml: no `allow` in [licenses]')
  const allow = new Set(strings(found[1] ?? found[2]))
  const exceptions = new Map()
  const excepted = list('licenses', 'exceptions')
  for (const [, words, crate] of (excepted?.[1] ?? excepted?.[2] ?? '').matchAll(/allow = \[([^\]]*)\], crate = "([^"]+)"/g)) {
    exceptions.set(crate, strings(words))
  }
  const denied = list('bans', 'deny')
  if (!denied) throw new Error('deny.toml: no `deny` in [bans]')
  const entries = [...(denied[1] ?? denied[2]).matchAll(/\{ crate = "([^"]+)", reason = "([^"]*)" \}/g)]
  if (entries.length !== (denied[1] ?? denied[2]).split('{').length - 1) throw new Error('deny.toml: an entry of `deny` in [bans] could not be read')
  return { allow, exceptions, banned: new Map(entries.map(([, crate, reason]) => [crate, reason])) }
}

/** Whether an SPDX expression can be met with these licences. `/` is an old way to write OR. */
export function satisfied(expression, allowed) {
  const tokens = expression.replaceAll('/', ' OR ').match(/\(|\)|[^\s()]+/g)
  let at = 0
  const one = () => {
    if (tokens[at] === '(') {
      at += 1
      const inner = any()
      at += 1
      return inner
    }
    let name = tokens[at++]
    if (tokens[at] === 'WITH') {
      name = `${name} WITH ${tokens[at + 1]}`
      at += 2
    }
    return allowed.has(name)
  }
  const all = () => {
    let ok = one()
    while (tokens[at] === 'AND') {
      at += 1
      ok = one() && ok
    }
    return ok
  }
  const any = () => {
    let ok = all()
    while (tokens[at] === 'OR') {
      at += 1
      ok = all() || ok
    }
    return ok
  }
  const ok = any()
  if (at !== tokens.length) throw new Error(`licence ${JSON.stringify(expression)} could not be read`)
  return ok
}

if (isProgram(import.meta.url)) {
  const started = Date.now()
  needRust()
  conclude(deny(), started)
}
