// npm run test:package: the packages as they are released, for this machine. Builds, packs, installs, and checks the
// points that __test__/packed.test.mjs can't check on a debug build.
//
//   npm run test:package                       builds first
//   npm run test:package -- --built            takes what is in npm/
//   npm run test:package -- --target TRIPLE    judges that target's binaries; they are run only where they can be
//   npm run test:package -- --glibc 2.17       fails when a newer symbol is needed (otherwise it is only reported)
import { spawnSync } from 'node:child_process'
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { homedir, tmpdir, userInfo } from 'node:os'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { dist, hostTriple } from './dist.mjs'
import { packMain, packPlatform, platforms } from './packages.mjs'
import { conclude, root, verdict } from './steps.mjs'

/** N62: each binary, stripped, in MiB. */
const BUDGET = { addon: 20, server: 24 }

const started = Date.now()
const { values } = parseArgs({
  options: { built: { type: 'boolean', default: false }, target: { type: 'string' }, glibc: { type: 'string' } },
})
const triple = values.target ?? hostTriple()
const platform = platforms.find((platform) => platform.triple === triple)
let ok = values.built || (await dist(triple))
if (ok) {
  for (const [kind, most] of Object.entries(BUDGET)) judge(path.join(root, 'npm', platform.folder, platform[kind]), most)
  if (triple === hostTriple()) install()
}
conclude(ok, started)

function judge(file, most) {
  const name = path.basename(file)
  const bytes = readFileSync(file)
  const mib = (bytes.length / 1024 / 1024).toFixed(2)
  verdict(mib <= most, `${name}: ${mib} MiB, at most ${most}`)
  const text = bytes.toString('latin1')
  // Short names would be found in any megabyte of code.
  const own = [homedir(), root, process.env.CARGO_HOME, userInfo().username].filter((part) => part?.length > 5)
  const found = own.filter((part) => text.includes(part))
  const paths = [...new Set(text.match(/(?:\/home\/|\/Users\/|\/root\/|[A-Z]:\\Users\\)[\w.-]+[/\\][\w./\\-]{0,60}/g) ?? [])]
    // Ours stands for every home.
    .filter((part) => !part.startsWith('/home/.cargo'))
  verdict(found.length + paths.length === 0, `${name}: no build path and no user name ${[...found, ...paths].slice(0, 5).join(' ')}`)
  if (triple.includes('linux')) elf(file, name)
}

function elf(file, name) {
  const { stdout } = spawnSync('objdump', ['-T', file], { encoding: 'utf8', maxBuffer: 64 << 20 })
  verdict(spawnSync('objdump', ['-t', file], { encoding: 'utf8' }).stdout.includes('no symbols'), `${name}: stripped`)
  const wanted = [...stdout.matchAll(/^(.*)\bGLIBC_([\d.]+)\)?\s+(\S+)$/gm)].map(([, line, version, symbol]) => ({
    version,
    symbol,
    weak: / w /.test(line),
  }))
  // A weak symbol may be missing: the program looks before it calls.
  const strong = wanted.filter(({ weak }) => !weak).sort((a, b) => compare(a.version, b.version))
  const newest = strong.at(-1)
  const over = values.glibc === undefined ? [] : wanted.filter(({ version }) => compare(version, values.glibc) > 0)
  const said = newest === undefined ? 'no glibc symbol' : `glibc up to ${newest.version} (${newest.symbol})`
  verdict(over.length === 0, `${name}: ${said} ${over.map(({ symbol, version }) => `${symbol}@${version}`).join(' ')}`)
}

/** In an empty folder, from the tarballs. */
function install() {
  const work = mkdtempSync(path.join(tmpdir(), 'kiro-package-'))
  try {
    const tarballs = [packMain(path.join(work, 'dist')), packPlatform(platform, path.join(work, 'dist'))]
    for (const tarball of tarballs) {
      console.log(`${path.basename(tarball)}: ${(statSync(tarball).size / 1024 / 1024).toFixed(2)} MiB`)
    }
    const app = path.join(work, 'app')
    const modules = path.join(app, 'node_modules')
    for (const tarball of tarballs) {
      // As npm unpacks it; npm itself is what packed.test.mjs tries.
      const into = path.join(modules, tarball.includes(platform.folder) ? `kiro-messages-${platform.folder}` : 'kiro-messages')
      mkdirSync(into, { recursive: true })
      verdict(spawnSync('tar', ['-xzf', tarball, '-C', into, '--strip-components', '1']).status === 0, `${path.basename(tarball)} unpacks`)
    }
    cpSync(path.join(root, '__test__/support/smoke.cjs'), path.join(app, 'smoke.cjs'))
    writeFileSync(path.join(app, 'package.json'), '{"private":true}')
    const smoke = spawnSync(process.execPath, ['smoke.cjs'], { cwd: app, encoding: 'utf8' })
    verdict(smoke.status === 0, `smoke: ${smoke.stdout}${smoke.stderr}`)
    const cli = spawnSync(process.execPath, [path.join(modules, 'kiro-messages/lib/cli.js'), '--version'], { encoding: 'utf8' })
    verdict(cli.status === 0, `npx kiro-messages: ${cli.stdout}${cli.stderr}`)
  } finally {
    rmSync(work, { recursive: true, force: true })
  }
}

function compare(a, b) {
  const [x, y] = [a, b].map((version) => version.split('.').map(Number))
  return x[0] - y[0] || (x[1] ?? 0) - (y[1] ?? 0)
}
