// What a program sees when it loads the package.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, readFileSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { test } from 'node:test'
import * as imported from 'kiro-messages'
import { folder } from './support/stack.mjs'

const require = createRequire(import.meta.url)
const required = require('kiro-messages')

test('import and require give the same objects (case 1)', () => {
  assert.deepEqual(Object.keys(imported).filter((name) => name !== 'default').sort(), Object.keys(required).sort())
  for (const name of Object.keys(required)) assert.equal(imported[name], required[name], name)
})

test('index.d.ts declares every class that is exported, and nothing else that exists at run time', () => {
  const types = readFileSync(new URL('../index.d.ts', import.meta.url), 'utf8')
  const declared = [...types.matchAll(/^export declare (?:class|function|const) (\w+)/gm)].map((match) => match[1])
  assert.deepEqual([...new Set(declared)].sort(), Object.keys(required).sort())
})

test('the main entry knows nothing of the existing service (N20)', () => {
  const lib = new URL('../lib/', import.meta.url)
  for (const name of readdirSync(lib).filter((name) => /\.m?js$/.test(name))) {
    const text = readFileSync(new URL(name, lib), 'utf8')
    assert.doesNotMatch(text, /require\('\.\/aiclient|from '\.\/aiclient|getPoolManager|getServiceInstances/, name)
  }
})

test('every option of the settings table is in the types', () => {
  const types = readFileSync(new URL('../index.d.ts', import.meta.url), 'utf8')
  const settings = JSON.parse(require('../index.js').settings())
  assert.ok(settings.length > 30)
  for (const { js } of settings) assert.match(types, new RegExp(`^  ${js}\\?: `, 'm'))
})

test('every target has its platform package, of exactly our version (N61)', () => {
  const read = (path) => JSON.parse(readFileSync(new URL(path, import.meta.url), 'utf8'))
  const main = read('../package.json')
  const wanted = main.napi.targets.map((triple) => {
    const [arch, , os, abi] = triple.split('-')
    const cpu = { x86_64: 'x64', aarch64: 'arm64' }[arch]
    const platform = { linux: 'linux', darwin: 'darwin', windows: 'win32' }[os]
    return { folder: [platform, cpu, abi].filter(Boolean).join('-'), cpu, platform, abi }
  })
  assert.equal(wanted.length, 8)
  for (const { folder, cpu, platform, abi } of wanted) {
    const own = read(`../npm/${folder}/package.json`)
    assert.equal(own.name, `kiro-messages-${folder}`)
    assert.equal(own.version, main.version)
    assert.deepEqual(own.cpu, [cpu])
    assert.deepEqual(own.os, [platform])
    assert.deepEqual(own.libc, platform === 'linux' ? [{ gnu: 'glibc', musl: 'musl' }[abi]] : undefined)
    const server = platform === 'win32' ? 'kiro-server.exe' : 'kiro-server'
    assert.deepEqual(own.files, [`kiro-messages.${folder}.node`, server, 'LICENSE-MIT', 'LICENSE-APACHE'])
    assert.equal(own.main, `kiro-messages.${folder}.node`)
    assert.equal(own.license, main.license)
  }
  assert.deepEqual(main.dependencies, undefined, 'no run-time dependencies')
})

test('`npm version` writes everything that repeats the version, the loader too, also in a folder that is reached by a link', (t) => {
  const root = new URL('../', import.meta.url)
  const copy = path.join(folder(), 'a copy')
  const repeats = ['package.json', 'index.js', 'Cargo.toml', 'Cargo.lock', 'fuzz/Cargo.lock']
  for (const file of ['scripts', 'npm', ...repeats]) {
    cpSync(new URL(file, root), path.join(copy, file), { recursive: true, filter: (name) => !/\.node$|kiro-server$/.test(name) })
  }
  const manifest = JSON.parse(readFileSync(path.join(copy, 'package.json'), 'utf8'))
  writeFileSync(path.join(copy, 'package.json'), JSON.stringify({ ...manifest, version: '9.8.7' }))
  symlinkSync(copy, `${copy}.link`, 'junction')
  const { status, stderr } = spawnSync(process.execPath, [path.join(`${copy}.link`, 'scripts/packages.mjs'), '--version'], { encoding: 'utf8' })
  assert.equal(status, 0, stderr)
  const loader = readFileSync(path.join(copy, 'index.js'), 'utf8')
  const checks = loader.match(/bindingPackageVersion !== '.*?'|mismatch, expected \S+/g)
  assert.ok(checks.length > 40)
  assert.deepEqual([...new Set(checks)], ["bindingPackageVersion !== '9.8.7'", 'mismatch, expected 9.8.7'])
  for (const file of repeats.slice(2)) assert.match(readFileSync(path.join(copy, file), 'utf8'), /name = "kiro-messages"\nversion = "9\.8\.7"/)
  for (const name of readdirSync(path.join(copy, 'npm')).filter((name) => name !== 'README.md')) {
    assert.equal(JSON.parse(readFileSync(path.join(copy, 'npm', name, 'package.json'), 'utf8')).version, '9.8.7', name)
  }
  const added = new Set(/git add (.*)$/.exec(manifest.scripts.version)[1].split(' '))
  assert.deepEqual(added, new Set(['npm', ...repeats]))
})

test('JavaScript in the documents is JavaScript, also on the oldest Node.js that we take', () => {
  const root = new URL('../', import.meta.url)
  const documents = ['README.md', 'npm/README.md', 'index.d.ts', 'lib/aiclient/main.d.ts', ...readdirSync(new URL('docs', root)).map((name) => `docs/${name}`)]
  const AsyncFunction = (async () => {}).constructor
  let examples = 0
  for (const name of documents.filter((name) => /\.(md|ts)$/.test(name))) {
    const text = readFileSync(new URL(name, root), 'utf8').replaceAll(/^ *\* ?/gm, '')
    for (const [, code] of text.matchAll(/^```js\n(.*?)^```/gms)) {
      const body = code.replaceAll(/^import .*$/gm, '').replaceAll(/^export /gm, '')
      assert.doesNotThrow(() => new AsyncFunction(body), `${name}: ${code}`)
      examples += 1
    }
  }
  assert.ok(examples > 8, `${examples}`)
})

test('without its binary the package says what is missing and what to do (case 37)', (t) => {
  const copy = folder()
  for (const part of ['package.json', 'index.js', 'lib']) {
    cpSync(new URL(`../${part}`, import.meta.url), `${copy}/${part}`, { recursive: true })
  }
  const program = "try { require('./lib/main.js') } catch (error) { console.log(JSON.stringify([error.code, error.name, error.message])) }"
  const { stdout, stderr } = spawnSync(process.execPath, ['-e', program], { cwd: copy, encoding: 'utf8' })
  assert.equal(stderr, '')
  const [code, name, message] = JSON.parse(stdout)
  assert.equal(code, 'KIRO_BINDING_NOT_FOUND')
  assert.equal(name, 'KiroError')
  const { platform, arch } = process
  assert.match(message, new RegExp(`for ${platform} ${arch}`))
  assert.match(message, new RegExp(`kiro-messages-${platform}-${arch}`))
  assert.match(message, /tried: .*kiro-messages-/)
  assert.match(message, /--omit=optional/)
})

test('where a runtime refuses what the loader asks, the error says what it wants (N74)', (t) => {
  const copy = folder()
  for (const part of ['package.json', 'index.js', 'lib']) {
    cpSync(new URL(`../${part}`, import.meta.url), `${copy}/${part}`, { recursive: true })
  }
  // As Deno without a permission.
  writeFileSync(`${copy}/deno.cjs`, `
    globalThis.Deno = {}
    const refuse = (what) => () => { throw new Error(\`Requires \${what} access\`) }
    process.report.getReport = refuse('sys')
    const { env } = process
    Object.defineProperty(process, 'env', { value: new Proxy(env, { get: (_, name) => name === 'NAPI_RS_NATIVE_LIBRARY_PATH' ? refuse('env')() : env[name] }) })
    process.dlopen = refuse('ffi')`)
  const binary = readdirSync(new URL('../', import.meta.url)).find((name) => name.endsWith('.node'))
  writeFileSync(`${copy}/${binary}`, '')
  const run = (...args) => spawnSync(process.execPath, ['-r', './deno.cjs', ...args], { cwd: copy, encoding: 'utf8' })
  const { stdout, stderr } = run('-e', "try { require('./lib/main.js') } catch (error) { console.log(JSON.stringify([error.code, error.message])) }")
  assert.equal(stderr, '')
  const [code, message] = JSON.parse(stdout)
  assert.equal(code, 'KIRO_BINDING_NOT_FOUND')
  assert.match(message, /tried: Requires ffi access/)
  assert.match(message, /Deno loads a native binary only with --allow-ffi/)
  // The command: a program that may not be started is one line, too.
  const platform = `kiro-messages-${binary.split('.')[1]}`
  const server = process.platform === 'win32' ? 'kiro-server.exe' : 'kiro-server'
  mkdirSync(`${copy}/node_modules/${platform}`, { recursive: true })
  writeFileSync(`${copy}/node_modules/${platform}/${server}`, '')
  writeFileSync(`${copy}/refuse.cjs`, "require('node:child_process').spawn = () => { throw new Error('Requires env access') }")
  const command = run('-r', './refuse.cjs', 'lib/cli.js', 'serve')
  assert.equal(command.status, 69)
  assert.match(command.stderr, /^kiro-messages: .*: Requires env access\n$/)
})

test('docs/platforms.md has every row that npm run test:platforms plays (N74)', () => {
  const root = new URL('../', import.meta.url)
  const { stdout } = spawnSync(process.execPath, ['scripts/test-platforms.mjs', '--list'], { cwd: root, encoding: 'utf8' })
  const page = readFileSync(new URL('docs/platforms.md', root), 'utf8')
  const [, table] = page.split(/^\|---\|---\|---\|$/m)
  const rows = [...table.split('\n\n')[0].matchAll(/^\| ([^|]+) \|/gm)].map(([, name]) => name)
  assert.ok(rows.length > 6)
  assert.deepEqual(rows, stdout.trim().split('\n'))
})

test('a bench that may not stand for the project is refused before it runs, and one that broke after it', async () => {
  const root = new URL('../', import.meta.url)
  const asked = {
    '1 of at least 3 rounds': ['--rounds', '1'],
    '2 of at least 3 rounds': ['--rounds', '2'],
    'NaN of at least 3 rounds': ['--rounds', 'many'],
    'quick run': ['--quick', '--rounds', '5'],
    'only burst': ['--only', 'burst'],
    '--no-save': ['--no-save'],
  }
  for (const [why, args] of Object.entries(asked)) {
    const run = [process.execPath, ['scripts/bench.mjs', '--publish', '--no-build', ...args], { cwd: root, encoding: 'utf8', timeout: 20_000 }]
    const { status, stderr, stdout } = spawnSync(...run)
    assert.equal(status, 1, `${args}: ${stderr}`)
    assert.match(stderr, new RegExp(`^bench: can't be published: .*${why}.*\n$`))
    assert.equal(stdout, '')
  }
  const { unfit } = await import('../bench/publish.mjs')
  assert.equal(unfit({ quick: false, rounds: 3, broken: [] }), null)
  assert.equal(unfit({ quick: false, rounds: 5, broken: [{ name: 'single', error: 'x' }] }), 'single broke')
  assert.match(unfit({ quick: false, rounds: 1, broken: [] }), /1 of at least 3/)
})

test('who builds the server gets the one that is released: by the script, by the page, as an image', async () => {
  const { SERVER_FEATURES } = await import('../scripts/dist.mjs')
  const of = (file, form) => form.exec(readFileSync(new URL(`../${file}`, import.meta.url), 'utf8'))?.[1]
  const built = /cargo build --release --no-default-features --features (\S+) --bin kiro-server/
  assert.equal(of('package.json', built), SERVER_FEATURES)
  assert.equal(of('docs/operations.md', built), SERVER_FEATURES)
  assert.equal(of('deploy/Dockerfile', /^ARG FEATURES=(.*)$/m), SERVER_FEATURES)
})
