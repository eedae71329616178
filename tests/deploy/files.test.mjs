// Checks that need neither Docker nor systemd as process 1: the image's build context, the units.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { folder } from '../../__test__/support/stack.mjs'
import { root, serverBinary } from '../../scripts/steps.mjs'

const deploy = (name) => path.join(root, 'deploy', name)

test('the image is built of what cargo needs, and of nothing else', (t) => {
  const context = folder(t)
  const lines = readFileSync(deploy('Dockerfile.dockerignore'), 'utf8').split('\n').filter((line) => line && !line.startsWith('#'))
  assert.equal(lines[0], '*', 'everything is left out')
  for (const line of lines.slice(1)) {
    assert.ok(line.startsWith('!'), `${line}: and then taken in`)
    cpSync(path.join(root, line.slice(1)), path.join(context, line.slice(1)), { recursive: true })
  }
  // Reads the manifest, finds every target it names, and holds the lock file against it.
  const { status, stdout, stderr } = spawnSync('cargo', ['metadata', '--locked', '--format-version=1', '--no-deps'], {
    cwd: context,
    encoding: 'utf8',
    maxBuffer: 64 << 20,
  })
  assert.equal(status, 0, stderr)
  const names = JSON.parse(stdout).packages[0].targets.map(({ name }) => name)
  assert.ok(names.includes('kiro-server'), names.join(' '))

  const image = readFileSync(deploy('Dockerfile'), 'utf8')
  const asks = /^HEALTHCHECK .*CMD (\[.*\])$/m.exec(image)
  assert.deepEqual(JSON.parse(asks[1]), ['kiro-server', 'health'])
  assert.equal(spawnSync(serverBinary(), ['health', '--help']).status, 0)
  assert.match(image, /^USER \d+:\d+$/m)
  assert.match(image, /^ENV KIRO_HOST=0\.0\.0\.0 /m)
  // The image's last FROM is the one that runs: it must have the C library that the build had.
  const [build, run] = [...image.matchAll(/^FROM \S*?(bookworm|trixie)\S*/gm)].map(([, release]) => release)
  assert.equal(build, run)
})

test('the image of a release holds the static programs and nothing else (N75)', () => {
  const image = readFileSync(deploy('Dockerfile.release'), 'utf8')
  const taken = [...image.matchAll(/^COPY (npm\S+)/gm)].map(([, file]) => file)
  const allowed = readFileSync(deploy('Dockerfile.release.dockerignore'), 'utf8').trim().split('\n')
  assert.deepEqual(allowed, ['*', ...taken.map((file) => `!${file}`)])
  assert.deepEqual(taken, ['npm/linux-x64-musl/kiro-server', 'npm/linux-arm64-musl/kiro-server'])
  assert.match(image, /^FROM scratch$/m)
  // What the one from source says of how it is run, this one says too.
  const said = (text) => text.slice(text.lastIndexOf('\nFROM ')).match(/^(USER|WORKDIR|ENV|EXPOSE|STOPSIGNAL) .*$/gm)
  assert.deepEqual(said(image), said(readFileSync(deploy('Dockerfile'), 'utf8')))
  const asks = /^HEALTHCHECK .*CMD (\[.*\])$/m.exec(image)
  assert.deepEqual(JSON.parse(asks[1]), ['/usr/local/bin/kiro-server', 'health'])
})

test('the units are ones that systemd takes', { skip: noSystemd() }, (t) => {
  const units = path.join(folder(t), 'units')
  mkdirSync(units)
  for (const name of ['kiro-server.service', 'kiro-server.socket']) {
    // Verifying looks for the program.
    const text = readFileSync(deploy(name), 'utf8').replaceAll('/usr/local/bin/kiro-server', serverBinary())
    writeFileSync(path.join(units, name), text)
  }
  const { status, stderr } = spawnSync('systemd-analyze', ['verify', `${units}/kiro-server.service`, `${units}/kiro-server.socket`], {
    encoding: 'utf8',
  })
  assert.equal(status, 0, stderr)
  assert.equal(stderr, '')
  const exposed = spawnSync('systemd-analyze', ['security', '--offline=true', '--threshold=25', `${units}/kiro-server.service`], {
    encoding: 'utf8',
  })
  assert.equal(exposed.status, 0, exposed.stdout)
})

function noSystemd() {
  return spawnSync('systemd-analyze', ['--version']).status === 0 ? false : 'no systemd-analyze here'
}
