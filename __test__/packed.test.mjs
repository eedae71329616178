// The package as it is published: packed for real, installed in an empty folder without Rust, build or network, and used
// from there (N60–N62).
import assert from 'node:assert/strict'
import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { tmpdir } from 'node:os'
import { packMain, packPlatform, platforms } from '../scripts/packages.mjs'
import { freePort, root, serverBinary } from '../scripts/steps.mjs'
import { until } from './support/stack.mjs'

const require = createRequire(import.meta.url)
const { describe } = require('../lib/platform.js')

/** A path that programs stumble over. */
const work = mkdtempSync(path.join(tmpdir(), 'kiro packed é-'))
const folder = path.join(work, 'app')
const ours = platforms.find((platform) => `kiro-messages-${platform.folder}` === describe().package)
const tarballs = {}

before(async () => {
  // The debug build that npm test has made, without its debug information: the size is another test's concern.
  const slim = (file) => {
    const copy = path.join(work, path.basename(file))
    cpSync(file, copy)
    spawnSync('strip', [copy])
    return copy
  }
  tarballs.main = packMain(path.join(work, 'dist'))
  tarballs.platform = packPlatform(ours, path.join(work, 'dist'), {
    addon: slim(path.join(root, ours.addon)),
    server: slim(serverBinary()),
  })
  mkdirSync(folder)
  writeFileSync(path.join(folder, 'package.json'), JSON.stringify({ name: 'app', private: true }))
  const registry = await serveRegistry()
  writeFileSync(path.join(folder, '.npmrc'), `registry=${registry.url}\nomit-lockfile-registry-resolved=false\n`)
  const again = () => rmSync(path.join(folder, 'node_modules'), { recursive: true })
  try {
    await npm('install', 'kiro-messages')
    again()
    // npm may end before it has written all of its cache: what is missing then comes once more.
    await npm('ci', '--prefer-offline', '--ignore-scripts')
  } finally {
    registry.close()
  }
  again()
  await npm('ci', '--offline', '--ignore-scripts')
})

after(() => rmSync(work, { recursive: true, force: true }))

/** A registry with our nine packages; of those for other platforms there is only what npm reads before it leaves them out. */
async function serveRegistry() {
  const files = new Map()
  const server = createServer((req, res) => {
    const found = files.get(decodeURIComponent(req.url))
    const headers = { 'content-type': 'application/octet-stream', 'cache-control': 'public, max-age=300' }
    res.writeHead(found === undefined ? 404 : 200, headers).end(found ?? '{}')
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const url = `http://127.0.0.1:${server.address().port}`
  const publish = (manifest, tarball) => {
    const { name, version } = manifest
    const dist = { tarball: `${url}/${name}.tgz` }
    if (tarball !== undefined) {
      const bytes = readFileSync(tarball)
      files.set(`/${name}.tgz`, bytes)
      dist.integrity = `sha512-${createHash('sha512').update(bytes).digest('base64')}`
    }
    const versions = { [version]: { ...manifest, dist } }
    files.set(`/${name}`, JSON.stringify({ name, 'dist-tags': { latest: version }, versions }))
  }
  const staged = (name) => JSON.parse(readFileSync(path.join(work, 'dist/stage', name, 'package.json'), 'utf8'))
  for (const { folder } of platforms) {
    const own = folder === ours.folder
    const manifest = own ? staged(folder) : JSON.parse(readFileSync(path.join(root, 'npm', folder, 'package.json'), 'utf8'))
    publish(manifest, own ? tarballs.platform : undefined)
  }
  publish(staged('kiro-messages'), tarballs.main)
  const close = () => {
    server.close()
    server.closeAllConnections()
  }
  return { url, close }
}

/** With an empty cache, and no way but the registry that is named. */
async function npm(...args) {
  const quiet = ['--no-audit', '--no-fund', '--no-update-notifier', '--cache', path.join(work, 'cache')]
  const child = spawn('npm', [...args, ...quiet], { cwd: folder, stdio: ['ignore', 'pipe', 'pipe'], shell: process.platform === 'win32' })
  let output = ''
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk))
  const [status] = await once(child, 'close')
  assert.equal(status, 0, `npm ${args.join(' ')}\n${output}`)
}

/** Runs a program there, without anything of ours in the environment: no cargo, no settings. */
function node(...args) {
  return spawnSync(process.execPath, args, { cwd: folder, encoding: 'utf8', env: bare() })
}

function bare() {
  return { PATH: '/usr/bin:/bin', HOME: work, ...(process.env.SystemRoot && { SystemRoot: process.env.SystemRoot }) }
}

function inside(tarball) {
  const { stdout, status } = spawnSync('tar', ['-tzf', tarball], { encoding: 'utf8' })
  assert.equal(status, 0)
  return stdout.trim().split('\n').map((name) => name.replace(/^package\//, '')).sort()
}

test('npm installs it and its binaries for this platform, and nothing else; npm ci --offline --ignore-scripts too (N60, N61)', () => {
  const installed = readdirSync(path.join(folder, 'node_modules')).filter((name) => !name.startsWith('.'))
  assert.deepEqual(installed.sort(), ['kiro-messages', `kiro-messages-${ours.folder}`].sort())
  const manifest = JSON.parse(readFileSync(path.join(folder, 'node_modules/kiro-messages/package.json'), 'utf8'))
  assert.equal(manifest.scripts, undefined, 'nothing runs at install')
  assert.equal(manifest.dependencies, undefined)
  assert.deepEqual(
    manifest.optionalDependencies,
    Object.fromEntries(platforms.map((platform) => [`kiro-messages-${platform.folder}`, manifest.version]).sort()),
  )
})

test('the tarballs hold only the listed files, the licences and what was built', () => {
  const lib = readdirSync(path.join(root, 'lib'), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => path.relative(root, path.join(entry.parentPath, entry.name)))
  const always = ['package.json', 'README.md', 'LICENSE-MIT', 'LICENSE-APACHE']
  assert.deepEqual(inside(tarballs.main), [...always, 'CHANGELOG.md', 'index.js', 'index.d.ts', ...lib].sort())
  assert.deepEqual(inside(tarballs.platform), [...always, ours.addon, ours.server].sort())
  for (const name of ['index.js', 'index.d.ts']) {
    assert.deepEqual(readFileSync(path.join(folder, 'node_modules/kiro-messages', name)), readFileSync(path.join(root, name)), name)
  }
})

test('it works under require and import, and both give the same classes (N60)', () => {
  cpSync(path.join(root, '__test__/support/smoke.cjs'), path.join(folder, 'smoke.cjs'))
  const { status, stdout, stderr } = node('smoke.cjs')
  assert.equal(status, 0, stderr)
  assert.match(stdout, /^ok: .* 1000 deltas\n$/)
  assert.equal(stderr, '')
  const program = `
    import * as imported from 'kiro-messages'
    import * as adapters from 'kiro-messages/aiclient'
    import { createServer } from 'node:http'
import { createRequire } from 'node:module'
    const require = createRequire(import.meta.url)
    const same = (a, b) => Object.keys(b).length > 0 && Object.keys(b).every((name) => a[name] === b[name])
    console.log(same(imported, require('kiro-messages')), same(adapters, require('kiro-messages/aiclient')))
    console.log(require('kiro-messages/package.json').version)
    try { await import('kiro-messages/lib/bell.js') } catch (error) { console.log(error.code) }`
  writeFileSync(path.join(folder, 'both.mjs'), program)
  const both = node('both.mjs')
  const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  assert.equal(both.stdout, `true true\n${version}\nERR_PACKAGE_PATH_NOT_EXPORTED\n`, both.stderr)
})

test('its types compile strictly under node16, nodenext and bundler (N60)', () => {
  const program = `
    import { KiroGateway, KiroError, type MessageStream } from 'kiro-messages'
    import { createKiroAdapter, createKiroHandler, configure } from 'kiro-messages/aiclient'
    export async function main(): Promise<number> {
      const gateway: KiroGateway = await KiroGateway.connect({ upstream: 'simulator' })
      try {
        const stream: MessageStream = await gateway.streamMessages({ model: 'm', max_tokens: 1, messages: [] })
        for await (const bytes of stream) console.log(bytes.length)
      } catch (error) {
        if (KiroError.is(error)) return error.status
      }
      configure({ redisUrl: 'redis://127.0.0.1' })
      const adapter = createKiroAdapter({ uuid: 'a' })
      const near: boolean = adapter.isExpiryDateNear()
      const handle = createKiroHandler({ gateway })
      // @ts-expect-error: a setting that doesn't exist
      await KiroGateway.connect({ redisUlr: '' })
      return near && handle.length > 0 ? 0 : 1
    }`
  writeFileSync(path.join(folder, 'use.mts'), program)
  writeFileSync(path.join(folder, 'use.cts'), program)
  const at = (name) => path.join(root, 'node_modules', name)
  const tsc = (module, ...args) =>
    node(at('typescript/bin/tsc'), '--strict', '--noEmit', '--target', 'es2022', '--lib', 'esnext', '--types', 'node', '--typeRoots', at('@types'), '--module', module, ...args)
  for (const [module, ...args] of [
    // This one judges the declarations themselves too.
    ['node16', 'use.mts', 'use.cts'],
    ['nodenext', '--skipLibCheck', 'use.mts', 'use.cts'],
    ['esnext', '--moduleResolution', 'bundler', '--skipLibCheck', 'use.mts'],
  ]) {
    const { status, stdout } = tsc(module, ...args)
    assert.equal(status, 0, `${module}:\n${stdout}`)
  }
})

test('the packaging linters find nothing: publint, Are The Types Wrong', async () => {
  const { publint } = await import('publint')
  const { formatMessage } = await import('publint/utils')
  const installed = path.join(folder, 'node_modules/kiro-messages')
  const { messages } = await publint({ pkgDir: installed, pack: false, strict: true })
  const manifest = JSON.parse(readFileSync(path.join(installed, 'package.json'), 'utf8'))
  assert.deepEqual(messages.map((message) => formatMessage(message, manifest)), [])
  const { checkPackage, createPackageFromTarballData } = await import('@arethetypeswrong/core')
  const analysis = await checkPackage(createPackageFromTarballData(readFileSync(tarballs.main)))
  assert.ok(analysis.types)
  // How the resolution of Node.js 10 sees it is of no interest: it knows no `exports`, and Node.js 20 is the least we take.
  const problems = analysis.problems.filter(({ resolutionKind }) => resolutionKind !== 'node10')
  assert.deepEqual(problems, [])
})

test('npx kiro-messages is kiro-server: its flags, its exit codes, its signals', async () => {
  const command = path.join(folder, 'node_modules/.bin/kiro-messages')
  const run = (...args) => spawnSync(command, args, { encoding: 'utf8', cwd: folder, env: { ...process.env, ...bare(), PATH: process.env.PATH } })
  const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  assert.equal(run('--version').stdout, `kiro-server ${version}\n`)
  const wrong = run('serve', '--port', 'none')
  assert.equal(wrong.status, 2, 'the exit code of a configuration mistake')
  assert.match(wrong.stderr, /--port/)
  assert.equal(run('doctor', '--store', `file:${path.join(work, 'none.json')}`, '--json').status, 1)
  for (const [signal, code] of [['SIGTERM', 0], ['SIGINT', 0]]) {
    const port = await freePort()
    const child = spawn(command, ['serve', '--port', String(port), '--upstream', 'simulator', '--log-level', 'info'], { cwd: folder, env: { ...bare(), PATH: process.env.PATH }, stdio: ['ignore', 'pipe', 'pipe'] })
    let output = ''
    for (const stream of [child.stdout, child.stderr]) stream.on('data', (chunk) => (output += chunk))
    const ended = new Promise((resolve) => child.on('exit', (code, signal) => resolve({ code, signal })))
    try {
      await until(async () => (await fetch(`http://127.0.0.1:${port}/health`).catch(() => null))?.ok, 'the server', 20_000)
      child.kill(signal)
      assert.deepEqual(await ended, { code, signal: null }, output)
      assert.match(output, /"stopped"/, 'it drained, and was not cut by a second signal')
    } finally {
      child.kill('SIGKILL')
    }
  }
  // When a signal kills the server, the process that waits for us sees it.
  const port = await freePort()
  const child = spawn(command, ['simulate', '--listen', `127.0.0.1:${port}`], { cwd: folder, env: { ...bare(), PATH: process.env.PATH }, stdio: 'ignore' })
  const ended = new Promise((resolve) => child.on('exit', (code, signal) => resolve({ code, signal })))
  await until(async () => (await fetch(`http://127.0.0.1:${port}/_sim/stats`).catch(() => null))?.ok, 'the simulator', 20_000)
  child.kill('SIGQUIT')
  assert.deepEqual(await ended, { code: null, signal: 'SIGQUIT' })
})

test('texts name the command that was started: npx kiro-messages (N72)', () => {
  const command = path.join(folder, 'node_modules/.bin/kiro-messages')
  const store = `file:${path.join(work, 'nobody.json')}`
  const run = (...args) => spawnSync(command, [...args, '--store', store], { encoding: 'utf8', cwd: folder, env: { ...bare(), PATH: process.env.PATH } })
  assert.match(run('accounts', 'list').stdout, /^no accounts in .*; `npx kiro-messages accounts login` or `accounts add` brings one\n$/)
  assert.match(run('accounts', 'check', 'abcd').stderr, /^npx kiro-messages: no such account; `npx kiro-messages accounts list` shows them\n$/)
  assert.match(run('accounts', 'add', '--help').stdout, /^Usage: npx kiro-messages accounts add /m)
  assert.match(run('accounts', 'add', '--help').stdout, /\(npx kiro-messages --help has them all/)
  for (const args of [['--help'], ['doctor'], ['accounts', 'remove', '--help']]) {
    const { stdout, stderr } = run(...args)
    assert.doesNotMatch(stdout + stderr, /`kiro-server /, args.join(' '))
  }
  const program = `
    const { KiroGateway } = require('kiro-messages')
    KiroGateway.connect({ env: {}, store: ${JSON.stringify(store)} }).then(async (gateway) => {
      await gateway.createMessage({ model: 'claude-sonnet-4-5', max_tokens: 1, messages: [{ role: 'user', content: 'x' }] }).catch((error) => console.log(error.message))
      await gateway.close()
    })`
  const { stdout, stderr } = node('-e', program)
  assert.match(stdout, /`npx kiro-messages accounts login` or `accounts add` brings one\n$/, stderr)
})

test('no document in a package leads outside it, and the manifests say where everything is (N73)', () => {
  for (const name of ['kiro-messages', `kiro-messages-${ours.folder}`]) {
    const at = path.join(folder, 'node_modules', name)
    const files = readdirSync(at, { recursive: true })
    for (const file of files.filter((file) => file.endsWith('.md'))) {
      const text = readFileSync(path.join(at, file), 'utf8')
      for (const [, link] of text.matchAll(/\]\((?!https:|#)([^)\s#]+)/g)) {
        assert.ok(files.includes(path.normalize(path.join(path.dirname(file), link))), `${name}/${file} leads to ${link}`)
      }
    }
    const { homepage, bugs, repository } = JSON.parse(readFileSync(path.join(at, 'package.json'), 'utf8'))
    const [home] = homepage.split('#')
    assert.match(home, /^https:\/\/[\w.]+\/[\w-]+\/[\w-]+$/)
    assert.deepEqual([bugs, repository], [`${home}/issues`, { type: 'git', url: `git+${home}.git` }])
  }
  const page = readFileSync(path.join(folder, 'node_modules', 'kiro-messages', 'README.md'), 'utf8')
  assert.doesNotMatch(page, /npm run|cargo|\bkiro-server\b/)
  for (const name of ['createMessage', 'streamEvents', 'countTokens', 'handler()', 'listen()', 'npx kiro-messages']) assert.ok(page.includes(name), name)
  const install = page.indexOf('npm install kiro-messages')
  assert.ok(install > 0 && install < page.indexOf('createMessage'), 'it begins with the install')
})

test('without the platform package, with another version of it, and on musl (case 37, N62)', () => {
  const at = path.join(folder, 'node_modules', `kiro-messages-${ours.folder}`)
  const aside = path.join(work, 'aside')
  const load = "try { require('kiro-messages') } catch (error) { console.log(JSON.stringify([error.code, error.message])) }"
  const manifest = path.join(at, 'package.json')
  const right = readFileSync(manifest, 'utf8')
  writeFileSync(manifest, JSON.stringify({ ...JSON.parse(right), version: '9.9.9' }))
  const [code, other] = JSON.parse(node('-e', load).stdout)
  assert.equal(code, 'KIRO_BINDING_NOT_FOUND')
  assert.match(other, /of version 9\.9\.9, and \d+\.\d+\.\d+ is wanted/)
  writeFileSync(manifest, right)

  renameSync(at, aside)
  try {
    // As Node.js on Alpine describes itself.
    writeFileSync(
      path.join(folder, 'musl.cjs'),
      "process.report.getReport = () => ({ header: {}, sharedObjects: ['/lib/ld-musl-x86_64.so.1'] })",
    )
    for (const [flags, libc, suffix] of [[[], 'glibc', 'gnu'], [['-r', './musl.cjs'], 'musl', 'musl']]) {
      if (process.platform !== 'linux' && libc === 'musl') continue
      const { stdout, stderr } = node(...flags, '-e', load)
      const [code, message] = JSON.parse(stdout || assert.fail(stderr))
      const wanted = process.platform === 'linux' ? `kiro-messages-linux-${process.arch}-${suffix}` : `kiro-messages-${ours.folder}`
      assert.equal(code, 'KIRO_BINDING_NOT_FOUND')
      const place = process.platform === 'linux' ? `linux ${process.arch}, ${libc}` : `${process.platform} ${process.arch}`
      assert.match(message, new RegExp(`for ${place}: ${wanted} was wanted`))
      assert.match(message, new RegExp(`tried: Cannot find module '${wanted}'`))
      for (const cure of [/--omit=optional/, `npm install ${wanted}`, /another platform/, /kiro-server, or its container image/]) {
        assert.match(message, new RegExp(cure))
      }
      const serve = node(...flags, 'node_modules/kiro-messages/lib/cli.js', 'serve')
      assert.equal(serve.status, 69)
      assert.match(serve.stderr, new RegExp(`there is no kiro-server for ${place}: ${wanted} was wanted`))
    }
  } finally {
    renameSync(aside, at)
  }
})
