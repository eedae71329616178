// What a release has beside the packages for npm: archives of the server, what they are made of, and their checksums.
//
//   npm run release:dry              builds what this machine can, checks it, and installs from it in an empty folder
//   npm run release:dry -- --built   the same with the binaries that npm/ holds already
//   node scripts/release.mjs --all   the archives of every platform and SHA256SUMS, in dist/, from the binaries in npm/
//
// Where cargo-auditable is installed, the binaries hold their list of crates (`cargo audit bin`, trivy and syft read it);
// where cargo-cyclonedx is, each archive has it as a file. A release refuses to do without, and a dry run says so.
import { createHash } from 'node:crypto'
import { spawn, spawnSync } from 'node:child_process'
import { chmodSync, cpSync, existsSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { inflateSync } from 'node:zlib'
import { deny } from './deny.mjs'
import { SERVER_FEATURES, dist, hostTriple } from './dist.mjs'
import { packMain, packPlatform, platforms } from './packages.mjs'
import { conclude, freePort, isProgram, needRust, root, skip, target, verdict } from './steps.mjs'

const { version } = JSON.parse(readFileSync(path.join(root, 'package.json'), 'utf8'))
const out = path.join(root, 'dist')
/** What an operator wants beside the program. */
const BESIDE = ['LICENSE-MIT', 'LICENSE-APACHE', 'CHANGELOG.md', 'deploy']

/** The time of everything that is made, in seconds: the commit's. */
const EPOCH = process.env.SOURCE_DATE_EPOCH ?? (spawnSync('git', ['log', '-1', '--format=%ct'], { cwd: root, encoding: 'utf8' }).stdout?.trim() || '0')

export const archiveName = (folder, of = version) => `kiro-server-${of}-${folder}`

/**
 * Packs a platform's server: `kiro-server-VERSION-PLATFORM.tar.gz`, whose one folder has the same name. The same input
 * gives the same bytes. Returns its path.
 */
export function archive({ folder, server }, { binary, into, sbom }) {
  const name = archiveName(folder)
  const stage = path.join(into, 'stage', name)
  rmSync(stage, { recursive: true, force: true })
  mkdirSync(stage, { recursive: true })
  for (const file of BESIDE) cpSync(path.join(root, file), path.join(stage, file), { recursive: true })
  cpSync(binary, path.join(stage, server))
  chmodSync(path.join(stage, server), 0o755)
  if (sbom) cpSync(sbom, path.join(stage, 'sbom.cdx.json'))
  const file = path.join(into, `${name}.tar.gz`)
  const sameBytes = ['--sort=name', `--mtime=@${EPOCH}`, '--owner=0', '--group=0', '--numeric-owner']
  must('tar', [...sameBytes, '-I', 'gzip -n -9', '-cf', file, '-C', path.join(into, 'stage'), name])
  return file
}

/** Writes SHA256SUMS of a folder's files, as `sha256sum -c` reads it. */
export function sums(folder) {
  const files = readdirSync(folder, { withFileTypes: true }).filter((entry) => entry.isFile() && !entry.name.startsWith('SHA256SUMS'))
  const line = ({ name }) => `${createHash('sha256').update(readFileSync(path.join(folder, name))).digest('hex')}  ${name}\n`
  writeFileSync(path.join(folder, 'SHA256SUMS'), files.sort((a, b) => (a.name < b.name ? -1 : 1)).map(line).join(''))
}

/** The crates that the server of a target is linked from, as `name version`. */
export function crates(triple) {
  const features = ['--no-default-features', '--features', SERVER_FEATURES]
  const tree = must('cargo', ['tree', '--locked', '-e', 'normal', '--prefix', 'none', '--target', triple, ...features])
  return new Set([...tree.matchAll(/^([\w-]+) v(\S+)/gm)].map(([, name, of]) => `${name} ${of}`))
}

/** The list of crates inside a Linux binary that cargo-auditable built; undefined when it has none. */
export function embedded(binary) {
  const work = mkdtempSync(path.join(tmpdir(), 'kiro-release-'))
  try {
    const section = path.join(work, 'section')
    spawnSync('objcopy', ['-O', 'binary', '--only-section=.dep-v0', '--set-section-flags', '.dep-v0=alloc', binary, section])
    if (!existsSync(section)) return undefined
    const bytes = readFileSync(section)
    if (bytes.length === 0) return undefined
    return new Set(JSON.parse(inflateSync(bytes)).packages.map((one) => `${one.name} ${one.version}`))
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

/** The bill of materials of a target's server (CycloneDX), or undefined without the tool. */
function billOf(triple) {
  if (spawnSync('cargo', ['cyclonedx', '--version'], { cwd: root }).status !== 0) return undefined
  const name = `kiro-server-${triple}`
  const of = ['--no-default-features', '--features', SERVER_FEATURES, '--target', triple]
  must('cargo', ['cyclonedx', '-q', '--format', 'json', '--override-filename', name, ...of], { env: { ...process.env, SOURCE_DATE_EPOCH: EPOCH } })
  const made = path.join(root, `${name}.json`)
  const file = path.join(target, `${name}.cdx.json`)
  // Where it was made is nobody's business, and would differ from machine to machine.
  writeFileSync(file, readFileSync(made, 'utf8').replaceAll(`file://${root.replace(/\/$/, '')}`, 'kiro-messages'))
  rmSync(made)
  return file
}

function billed(file) {
  const { components } = JSON.parse(readFileSync(file, 'utf8'))
  return new Set(components.map((one) => `${one.name} ${one.version}`))
}

function must(command, args, options = {}) {
  const done = spawnSync(command, args, { cwd: root, encoding: 'utf8', maxBuffer: 64 << 20, ...options })
  if (done.status !== 0) throw new Error(`${command} ${args.join(' ')}: ${done.stderr || done.error?.message}`)
  return done.stdout
}

function listsAll(found, wanted, what) {
  const missing = [...wanted].filter((one) => !one.startsWith('kiro-messages ') && !found.has(one))
  verdict(missing.length === 0, `${what} lists all ${wanted.size} crates${missing.map((one) => `, but not ${one}`).join('')}`)
}

/** Archives of these platforms and SHA256SUMS, in dist/. */
function make(wanted, { strict }) {
  for (const platform of wanted) {
    const binary = path.join(root, 'npm', platform.folder, platform.server)
    const all = crates(platform.triple)
    if (platform.triple.includes('linux')) {
      const inside = embedded(binary)
      if (inside) listsAll(inside, all, `${platform.folder}: the binary`)
      else if (strict) verdict(false, `${platform.folder}: the binary holds no list of its crates: install cargo-auditable`)
      else skip(`${platform.folder}: the list of crates in the binary: cargo install cargo-auditable`)
    }
    const sbom = billOf(platform.triple)
    if (sbom) listsAll(billed(sbom), all, `${platform.folder}: sbom.cdx.json`)
    else if (strict) verdict(false, `${platform.folder}: no bill of materials: install cargo-cyclonedx`)
    else skip(`${platform.folder}: the bill of materials: cargo install cargo-cyclonedx`)
    const file = archive(platform, { binary, into: out, sbom })
    console.log(`${path.basename(file)}: ${(readFileSync(file).length / 1024 / 1024).toFixed(1)} MiB`)
  }
  rmSync(path.join(out, 'stage'), { recursive: true, force: true })
  cpSync(path.join(root, 'deploy/install.sh'), path.join(out, 'install.sh'))
  sums(out)
  verdict(spawnSync('sha256sum', ['-c', '--quiet', 'SHA256SUMS'], { cwd: out }).status === 0, 'SHA256SUMS fits')
}

/** What somebody does who has nothing yet: installs, starts, asks. */
async function tryIt(platform) {
  const folder = mkdtempSync(path.join(tmpdir(), 'kiro-release-'))
  let server
  try {
    // install.sh takes the static one; a machine that can't build it tries its own under that name.
    const as = platform.folder.replace(/-gnu$/, '-musl')
    if (as !== platform.folder) {
      const from = path.join(root, 'npm', platform.folder, platform.server)
      archive({ ...platform, folder: as }, { binary: from, into: folder })
      sums(folder)
    }
    const from = as === platform.folder ? out : folder
    const started = Date.now()
    const bin = path.join(folder, 'bin')
    const installed = spawnSync('sh', [path.join(root, 'deploy/install.sh'), '--from', from, '--to', bin], { encoding: 'utf8' })
    if (!verdict(installed.status === 0, `install.sh: ${installed.stdout}${installed.stderr}`)) return
    const port = await freePort()
    const env = { ...process.env, KIRO_UPSTREAM: 'simulator', KIRO_PORT: String(port), KIRO_API_KEY: 'try', KIRO_LOG_LEVEL: 'warn' }
    server = spawn(path.join(bin, 'kiro-server'), [], { env, stdio: 'inherit', cwd: folder })
    verdict((await firstAnswer(port)).includes('event: message_stop'), `a stream, ${Date.now() - started} ms after install.sh began`)
  } finally {
    server?.kill()
    rmSync(folder, { recursive: true, force: true })
  }
}

async function firstAnswer(port) {
  const body = JSON.stringify({ model: 'claude-sonnet-4-5', max_tokens: 100, stream: true, messages: [{ role: 'user', content: 'Hello' }] })
  const headers = { 'x-api-key': 'try', 'content-type': 'application/json' }
  for (let tries = 0; ; tries += 1) {
    try {
      return await (await fetch(`http://127.0.0.1:${port}/v1/messages`, { method: 'POST', headers, body })).text()
    } catch (error) {
      if (tries === 100) throw error
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
  }
}

if (isProgram(import.meta.url)) {
  const started = Date.now()
  const { values } = parseArgs({ options: { all: { type: 'boolean', default: false }, built: { type: 'boolean', default: false } } })
  needRust()
  const has = ({ folder, server }) => existsSync(path.join(root, 'npm', folder, server))
  if (values.all) {
    const absent = platforms.filter((platform) => !has(platform)).map(({ folder }) => folder)
    if (absent.length > 0) throw new Error(`no binaries in npm/ for: ${absent.join(', ')}`)
    mkdirSync(out, { recursive: true })
    make(platforms, { strict: true })
    conclude(true, started)
  }
  const platform = platforms.find(({ triple }) => triple === hostTriple())
  let ok = deny() && (values.built || (await dist(platform.triple)))
  if (ok) {
    rmSync(out, { recursive: true, force: true })
    packPlatform(platform, out)
    packMain(out)
    make([platform], { strict: false })
    await tryIt(platform)
  }
  conclude(ok, started)
}
