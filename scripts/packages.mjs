// The packages that are published, and their tarballs.
//
//   node scripts/packages.mjs                 makes the tarballs of what npm/ has binaries for, and the main one, in dist/
//   node scripts/packages.mjs --all           the same, and refuses unless every platform has its binaries
//   node scripts/packages.mjs --version       writes the version of package.json into everything that repeats it
//
// napi's own prepublish isn't used: it wants all eight binaries in the tree, rewrites package.json there and publishes by
// itself. Here every package is staged, so that what a test installs is what the registry gets, byte for byte.
import { chmodSync, cpSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { spawnSync } from 'node:child_process'
import { isProgram, root } from './steps.mjs'

const ours = readJson('package.json')
/** The repository, as package.json and the documents name it. */
const HOME = ours.homepage.replace('#readme', '')

/** Every platform that has a package, from napi's targets: `{ triple, folder, addon, server }`. */
export const platforms = ours.napi.targets.map((triple) => {
  const [arch, , os, abi] = triple.split('-')
  const platform = { linux: 'linux', darwin: 'darwin', windows: 'win32' }[os]
  const folder = [platform, { x86_64: 'x64', aarch64: 'arm64' }[arch], abi].filter(Boolean).join('-')
  const suffix = platform === 'win32' ? '.exe' : ''
  return { triple, folder, addon: `kiro-messages.${folder}.node`, server: `kiro-server${suffix}` }
})

/**
 * Stages a platform's package below `out` and packs it. `addon` and `server` are its binaries, by default those in npm/.
 * Resolves to the tarball's path.
 */
export function packPlatform(platform, out, binaries = {}) {
  const source = path.join(root, 'npm', platform.folder)
  const { addon = path.join(source, platform.addon), server = path.join(source, platform.server) } = binaries
  const stage = emptyFolder(out, platform.folder)
  writeJson(path.join(stage, 'package.json'), { ...readJson(path.join('npm', platform.folder, 'package.json')), ...places() })
  cpSync(path.join(source, 'README.md'), path.join(stage, 'README.md'))
  for (const file of ['LICENSE-MIT', 'LICENSE-APACHE']) cpSync(path.join(root, file), path.join(stage, file))
  cpSync(addon, path.join(stage, platform.addon))
  cpSync(server, path.join(stage, platform.server))
  chmodSync(path.join(stage, platform.server), 0o755)
  return npmPack(stage, out)
}

/** The same for the main package, which wants every platform's package of exactly its version (N61). */
export function packMain(out) {
  const stage = emptyFolder(out, 'kiro-messages')
  for (const file of ours.files) cpSync(path.join(root, file), path.join(stage, file), { recursive: true })
  // The repository's own README is for who has the repository.
  writeFileSync(path.join(stage, 'README.md'), readFileSync(path.join(root, 'npm', 'README.md'), 'utf8').replaceAll(HOME, home()))
  const { devDependencies, overrides, scripts, ...published } = ours
  const optionalDependencies = Object.fromEntries(
    platforms.map(({ folder }) => [`${ours.name}-${folder}`, ours.version]).sort(),
  )
  writeJson(path.join(stage, 'package.json'), { ...published, ...places(), optionalDependencies })
  return npmPack(stage, out)
}

/** npm's provenance wants the repository that built it, as GitHub names it in its workflows. */
function home() {
  const { GITHUB_SERVER_URL, GITHUB_REPOSITORY } = process.env
  return GITHUB_REPOSITORY ? `${GITHUB_SERVER_URL ?? 'https://github.com'}/${GITHUB_REPOSITORY}` : HOME
}

/** Where a package's reader finds the source, the documents and the issues. */
function places() {
  const { homepage, bugs, repository } = ours
  return JSON.parse(JSON.stringify({ homepage, bugs, repository }).replaceAll(HOME, home()))
}

/** Everything that repeats the version. `npm version` calls this. */
function writeVersion() {
  for (const { folder } of platforms) {
    const file = path.join('npm', folder, 'package.json')
    writeJson(path.join(root, file), { ...readJson(file), version: ours.version })
  }
  for (const file of ['Cargo.toml', 'Cargo.lock', 'fuzz/Cargo.lock']) {
    const text = readFileSync(path.join(root, file), 'utf8')
    const with_ours = text.replace(/(\nname = "kiro-messages"\nversion = ")[^"]*/, `$1${ours.version}`)
    if (!with_ours.includes(`name = "kiro-messages"\nversion = "${ours.version}"`)) throw new Error(`${file}: no version of ours`)
    writeFileSync(path.join(root, file), with_ours)
  }
  // As the next build would: it is committed, and what is tagged is what is published.
  const loader = path.join(root, 'index.js')
  const text = readFileSync(loader, 'utf8')
  writeFileSync(loader, text.replace(/(bindingPackageVersion !== '|version mismatch, expected )\d[^' ]*/g, `$1${ours.version}`))
}

function npmPack(stage, out) {
  // Relative, for the shell would split a path with a space.
  const packed = spawnSync('npm', ['pack', '--json', '--ignore-scripts', '--pack-destination', path.relative(stage, out)], {
    cwd: stage,
    encoding: 'utf8',
    shell: process.platform === 'win32',
  })
  if (packed.status !== 0) throw new Error(`npm pack in ${stage}: ${packed.stderr}`)
  // A list in some versions of npm, an object by name in others.
  const [{ filename }] = Object.values(JSON.parse(packed.stdout))
  return path.join(out, filename)
}

function emptyFolder(out, name) {
  const stage = path.join(out, 'stage', name)
  rmSync(stage, { recursive: true, force: true })
  mkdirSync(stage, { recursive: true })
  return stage
}

function readJson(file) {
  return JSON.parse(readFileSync(path.join(root, file), 'utf8'))
}

function writeJson(file, value) {
  writeFileSync(file, `${JSON.stringify(value, null, 2)}\n`)
}

if (isProgram(import.meta.url)) {
  if (process.argv.includes('--version')) writeVersion()
  else {
    const has = ({ folder, addon, server }) =>
      [addon, server].every((file) => existsSync(path.join(root, 'npm', folder, file)))
    const absent = platforms.filter((platform) => !has(platform)).map(({ folder }) => folder)
    if (absent.length > 0 && process.argv.includes('--all')) {
      console.error(`no binaries in npm/ for: ${absent.join(', ')}`)
      process.exit(1)
    }
    const out = path.join(root, 'dist')
    rmSync(out, { recursive: true, force: true })
    for (const platform of platforms.filter(has)) console.log(packPlatform(platform, out))
    console.log(packMain(out))
    if (absent.length > 0) console.log(`without binaries, so not packed: ${absent.join(', ')}`)
  }
}
