// Programs and libraries of other platforms, for tests only: from the package registries, by their own clients, which check
// what they get against the registry's checksums. Each is unpacked once, below .cache/.
import { chmodSync, existsSync, mkdirSync, readFileSync, readdirSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { spawnSync } from 'node:child_process'
import path from 'node:path'
import { root } from './steps.mjs'

/** The keys of Debian's archive, where they are not trusted for every source. */
const KEYS = '/usr/share/keyrings/debian-archive-keyring.gpg'
const CACHE = path.join(root, '.cache', 'platforms')

/** It can't be had here; the message says why. */
export class Unavailable extends Error {}

/** A Python wheel, unpacked: its folder. `tags`: the platforms that a wheel of it may name, `manylinux2014_x86_64` and the like. */
export function wheel(name, version, tags) {
  return once(`${name}-${version}-${tags[0]}`, (folder) => {
    const wanted = ['--no-deps', '--only-binary=:all:', ...tags.flatMap((tag) => ['--platform', tag]), `${name}==${version}`]
    need('python3', ['-m', 'pip', 'download', '-q', '--disable-pip-version-check', '-d', folder, ...wanted])
    const [file] = readdirSync(folder)
    need('python3', ['-m', 'zipfile', '-e', path.join(folder, file), folder])
    rmSync(path.join(folder, file))
  })
}

/** A package of npm's registry, unpacked: its folder. */
export function npmPackage(name, version) {
  return once(`${name.replace(/\W+/g, '-')}-${version}`, (folder) => {
    need('npm', ['pack', `${name}@${version}`, '--silent', '--pack-destination', folder])
    const [file] = readdirSync(folder)
    need('tar', ['-xzf', path.join(folder, file), '-C', folder, '--strip-components', '1'])
    rmSync(path.join(folder, file))
  })
}

/**
 * Debian packages, unpacked into one folder and not installed: nothing of this machine changes, and nobody needs to be root.
 * From this machine's release, or from `suite` where that has what its own is too old for.
 */
export function debian(name, packages, suite) {
  return once(`debian-${name}${suite ? `-${suite}` : ''}`, (folder) => {
    const own = apt(path.join(folder, 'apt'))
    own('update', '-q')
    const from = suite === undefined ? own : apt(path.join(folder, `apt-${suite}`), sources(own, suite))
    if (suite !== undefined) from('update', '-q')
    const files = path.join(folder, 'files')
    mkdirSync(files)
    from('download', '-q', ...packages)
    for (const file of readdirSync(files)) need('dpkg-deb', ['-x', path.join(files, file), folder])
    for (const part of readdirSync(folder).filter((part) => !['usr', 'lib'].includes(part))) rmSync(path.join(folder, part), { recursive: true })
  })
}

/** apt-get with lists of its own below `folder`; downloads go to `files` beside that. */
function apt(folder, list) {
  for (const part of ['lists/partial', 'archives/partial']) mkdirSync(path.join(folder, part), { recursive: true })
  const options = [`Dir::State=${folder}`, `Dir::Cache=${folder}`, 'Dir::State::status=/var/lib/dpkg/status', 'APT::Sandbox::User=root']
  if (list !== undefined) {
    const file = path.join(folder, 'sources.list')
    writeFileSync(file, list)
    options.push(`Dir::Etc::sourcelist=${file}`, 'Dir::Etc::sourceparts=/dev/null')
  }
  const files = path.join(folder, '..', 'files')
  return (...args) => need('apt-get', [...options.flatMap((option) => ['-o', option]), ...args], existsSync(files) ? files : folder)
}

/** Where this machine gets Debian from, for another release of it. */
function sources(own, suite) {
  const [address] = own('indextargets', '--format', '$(REPO_URI)', 'Created-By: Packages', 'Origin: Debian', 'Label: Debian').split('\n')
  if (!address) throw new Unavailable('this machine has no source of Debian packages')
  return `deb ${existsSync(KEYS) ? `[signed-by=${KEYS}] ` : ''}${address} ${suite} main\n`
}

/** Runs a program and gives what it says; else it is unavailable for the last thing that it said. */
export function need(command, args, cwd) {
  const { error, status, stdout, stderr } = spawnSync(command, args, { cwd, encoding: 'utf8', maxBuffer: 64 << 20, timeout: 600_000 })
  if (error !== undefined) throw new Unavailable(`${command}: ${error.message}`)
  if (status !== 0) throw new Unavailable(`${command} ${args.find((arg) => !arg.startsWith('-'))}: ${stderr.trim().split('\n').at(-1)}`)
  return stdout
}

/** The folder of that name, filled by `fill` if it isn't there whole. */
export function once(name, fill) {
  const folder = path.join(CACHE, name)
  if (existsSync(folder)) return folder
  const half = `${folder}.half`
  rmSync(half, { recursive: true, force: true })
  mkdirSync(half, { recursive: true })
  fill(half)
  renameSync(half, folder)
  return folder
}

/** A program of an unpacked package: zip archives keep no mode. */
export function program(...parts) {
  const file = path.join(...parts)
  if (!existsSync(file)) throw new Unavailable(`${file} isn't there`)
  chmodSync(file, 0o755)
  return file
}

/** A version that the release workflow pins. */
export function pinned(name) {
  const workflow = readFileSync(path.join(root, '.github/workflows/release.yml'), 'utf8')
  return new RegExp(`^  ${name}: (\\S+)$`, 'm').exec(workflow)[1]
}
