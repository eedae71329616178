// deploy/install.sh with an archive as a release has it, and with what must not be installed.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { appendFileSync, chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { archive, archiveName, embedded, sums } from '../../scripts/release.mjs'
import { root } from '../../scripts/steps.mjs'

const script = path.join(root, 'deploy/install.sh')
const arch = { x64: 'x64', arm64: 'arm64' }[process.arch]
const folder = process.platform === 'darwin' ? `darwin-${arch}` : `linux-${arch}-musl`
const named = { folder, server: 'kiro-server' }

/** A release of one archive, whose program says its version. */
function release(t) {
  const at = mkdtempSync(path.join(tmpdir(), 'kiro-release-'))
  t.after(() => rmSync(at, { recursive: true, force: true, maxRetries: 3 }))
  const binary = path.join(at, 'program')
  writeFileSync(binary, '#!/bin/sh\necho kiro-server 0.0.0\n')
  const from = path.join(at, 'release')
  mkdirSync(from)
  const file = archive(named, { binary, into: from })
  rmSync(path.join(from, 'stage'), { recursive: true })
  sums(from)
  return { at, from, file, to: path.join(at, 'bin') }
}

/** Without cosign, whatever this machine has, unless the test brings one. */
function install({ from, to, at }, { args = [], env = {}, cosign } = {}) {
  const tools = path.join(at, 'tools')
  mkdirSync(tools, { recursive: true })
  if (cosign) {
    writeFileSync(path.join(tools, 'cosign'), `#!/bin/sh\n${cosign}\n`)
    chmodSync(path.join(tools, 'cosign'), 0o755)
  }
  const PATH = `${tools}:/usr/bin:/bin`
  return spawnSync('sh', [script, '--from', from, '--to', to, ...args], { encoding: 'utf8', env: { PATH, ...env } })
}

function refused(done, { to }, why) {
  assert.equal(done.status, 1, done.stdout)
  assert.match(done.stderr, why)
  assert.match(done.stderr, /Nothing was installed\.\n$/)
  assert.ok(!existsSync(path.join(to, 'kiro-server')))
}

test('the archive of a release is checked and installed (N75)', (t) => {
  const made = release(t)
  const done = install(made)
  assert.equal(done.status, 0, done.stderr)
  assert.equal(done.stdout, 'kiro-server 0.0.0\n')
  assert.match(done.stderr, /the signature isn't checked, for cosign is missing/)
  const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  assert.equal(install(made, { args: ['--version', version] }).status, 0)
  const listed = spawnSync('tar', ['-tzf', made.file], { encoding: 'utf8' }).stdout.split('\n')
  for (const file of ['kiro-server', 'LICENSE-MIT', 'deploy/kiro-server.service', 'deploy/install.sh']) {
    assert.ok(listed.includes(`${archiveName(folder)}/${file}`), file)
  }
})

test('the same input gives the same archive (N75)', (t) => {
  const [one, other] = [release(t), release(t)]
  assert.deepEqual(readFileSync(one.file), readFileSync(other.file))
})

test('an archive that was tampered with is refused (N75)', (t) => {
  const made = release(t)
  appendFileSync(made.file, 'x')
  refused(install(made), made, /isn't the one of the release/)
})

test('what the checksums do not name is refused (N75)', (t) => {
  const made = release(t)
  writeFileSync(path.join(made.from, 'SHA256SUMS'), `${'0'.repeat(64)}  ${archiveName('linux-mips')}.tar.gz\n`)
  refused(install(made), made, /names no archive of version latest/)
  // Nor two of them, nor a name with a path.
  const twice = ['1.0.0', '2.0.0'].map((version) => `${'0'.repeat(64)}  ${archiveName(folder, version)}.tar.gz\n`)
  writeFileSync(path.join(made.from, 'SHA256SUMS'), twice.join(''))
  refused(install(made), made, /names no archive/)
  writeFileSync(path.join(made.from, 'SHA256SUMS'), `${'0'.repeat(64)}  ../${archiveName(folder)}.tar.gz\n`)
  refused(install(made), made, /names no archive/)
  rmSync(path.join(made.from, 'SHA256SUMS'))
  refused(install(made), made, /SHA256SUMS can't be had/)
})

test('a signature that does not fit is refused, and one that fits is not (N75)', (t) => {
  const made = release(t)
  writeFileSync(path.join(made.from, 'SHA256SUMS.sigstore.json'), '{}')
  refused(install(made, { cosign: 'exit 1' }), made, /isn't signed by the release workflow/)
  const wants = 'case "$*" in "verify-blob --bundle "*"/SHA256SUMS.sigstore.json --certificate-oidc-issuer https://token.actions.githubusercontent.com --certificate-identity-regexp ^https://"*"/SHA256SUMS") exit 0;; esac; exit 1'
  const done = install(made, { cosign: wants })
  assert.equal(done.status, 0, done.stderr)
  assert.equal(done.stderr, '')
  // The bundle is part of the proof: without it there is none.
  rmSync(path.join(made.from, 'SHA256SUMS.sigstore.json'))
  rmSync(made.to, { recursive: true })
  refused(install(made, { cosign: 'exit 0' }), made, /sigstore\.json can't be had/)
})

test('whoever wants the signature gets no archive without (N75)', (t) => {
  const made = release(t)
  refused(install(made, { env: { REQUIRE_SIGNATURE: '1' } }), made, /cosign is missing/)
})

test('only https is asked, and an option that nobody knows is named (N75)', (t) => {
  const made = release(t)
  refused(install({ ...made, from: 'http://127.0.0.1:1' }), made, /only https, or a folder/)
  const done = spawnSync('sh', [script, '--form', 'x'], { encoding: 'utf8' })
  assert.deepEqual([done.status, done.stderr], [2, 'install.sh: unknown option --form\n'])
})

test('a version is taken with its v, an option without its value is named (N75)', (t) => {
  const made = release(t)
  const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
  assert.equal(install(made, { args: ['--version', `v${version}`] }).status, 0)
  const done = spawnSync('sh', [script, '--to'], { encoding: 'utf8' })
  assert.deepEqual([done.status, done.stderr], [2, 'install.sh: --to wants a value\n'])
})

test('a disk that is full leaves the installed one as it was (N75)', (t) => {
  const made = release(t)
  assert.equal(install(made).status, 0)
  const installed = path.join(made.to, 'kiro-server')
  writeFileSync(installed, '#!/bin/sh\necho the old one\n')
  // A program of 4 MB, and no room for it: `install` breaks off in the middle.
  const binary = path.join(made.at, 'program')
  writeFileSync(binary, `#!/bin/sh\necho kiro-server 0.0.0\nexit\n${'x'.repeat(4 << 20)}`)
  archive(named, { binary, into: made.from })
  rmSync(path.join(made.from, 'stage'), { recursive: true })
  sums(made.from)
  const breaks = path.join(made.at, 'tools', 'install')
  writeFileSync(breaks, '#!/bin/sh\nfor to; do :; done\nrm -f "$to"\necho part > "$to"\nexit 1\n')
  chmodSync(breaks, 0o755)
  const done = install(made)
  assert.equal(done.status, 1)
  assert.match(done.stderr, /bin can't be written \(sudo\? room\?\)\. Nothing was installed\.\n$/)
  assert.equal(readFileSync(installed, 'utf8'), '#!/bin/sh\necho the old one\n')
  assert.deepEqual(readdirSync(made.to), ['kiro-server'])
  // A folder that can't be made is no fault of the archive.
  const blocked = install({ ...made, to: path.join(binary, 'bin') })
  assert.match(blocked.stderr, /can't be written/)
})

test('the script is short enough to be read before it is run (N75)', () => {
  assert.ok(readFileSync(script, 'utf8').trimEnd().split('\n').length <= 60)
})

test('a program that cargo-auditable did not build holds no list (N75)', { skip: process.platform !== 'linux' }, () => {
  assert.equal(embedded('/bin/sh'), undefined)
})
