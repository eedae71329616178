// Builds the addon and what is generated with it: index.js (the loader), index.d.ts (the types).
//
//   node scripts/build.mjs            debug, and the debug kiro-server beside it: one compilation serves both, and cargo test
//   node scripts/build.mjs --release  what is published
//
// cargo compiles; the steps of napi's command line after that are done here, with napi's own functions. The command line
// itself gives --target to cargo, which then compiles every dependency once more, in another folder.
import { copyFileSync, existsSync, mkdirSync, readFileSync, renameSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import path from 'node:path'
import { hostTriple } from './dist.mjs'
import { platforms } from './packages.mjs'
import { UNDER_TEST, installPackages, isProgram, needRust, root, run } from './steps.mjs'

const require = createRequire(import.meta.url)
const { name, version, napi } = require('../package.json')

export async function build(release) {
  needRust()
  if (!(await installPackages())) return false
  const compiled = await compile(release ? ['--release', '--lib'] : UNDER_TEST)
  if (compiled === null) return false
  const addon = path.join(root, platforms.find(({ triple }) => triple === hostTriple()).addon)
  // A program that runs on the previous file keeps it.
  copyFileSync(compiled.library, `${addon}.new`)
  renameSync(`${addon}.new`, addon)
  const { generateTypeDef, writeJsBinding } = await import('@napi-rs/cli')
  const typeDefs = { typeDefDir: compiled.types, dtsHeaderFile: napi.dtsHeaderFile, cwd: root }
  const { exports: idents, dts } = await generateTypeDef(typeDefs)
  const { binaryName, packageName } = napi
  await writeJsBinding({ platform: true, idents, binaryName, packageName, version, outputDir: root })
  writeFileSync(path.join(root, 'index.d.ts'), finishTypes(dts, JSON.parse(require('../index.js').settings())))
  return true
}

/** Has cargo build the library: its file, and a folder with the TypeScript of its `#[napi]` items. */
async function compile(flags) {
  // With musl as libc, only this flag makes a library.
  const musl = { RUSTFLAGS: `${process.env.RUSTFLAGS ?? ''} -C target-feature=-crt-static` }
  const env = hostTriple().endsWith('musl') ? musl : {}
  const outs = {}
  let artifact
  const hear = (line) => {
    const said = JSON.parse(line)
    if (said.reason === 'build-script-executed') outs[said.package_id] = said.out_dir
    if (said.reason === 'compiler-artifact' && said.target.name === 'kiro_messages') artifact = said
  }
  for (let attempt = 0; attempt < 2; attempt++) {
    if (!(await run('cargo', ['build', ...flags, '--message-format', 'json-render-diagnostics'], { env, hear }))) return null
    const library = artifact.filenames.find((file) => /\.(so|dylib|dll)$/.test(file))
    // Tests, clippy and editors write their types to the same place as the library does (build.rs). A copy from the
    // library's own compilation is kept beside it.
    const types = path.join(path.dirname(library), 'napi-types')
    const [kept, stamp] = [path.join(types, name), path.join(path.dirname(library), 'napi-types.of')]
    const written = path.join(outs[artifact.package_id], 'types', name)
    const { mtimeMs } = statSync(library)
    const built = String(mtimeMs)
    const known = existsSync(stamp) && readFileSync(stamp, 'utf8') === built
    if (!artifact.fresh || (!known && isOf(written, mtimeMs))) {
      mkdirSync(types, { recursive: true })
      copyFileSync(written, kept)
      writeFileSync(stamp, built)
    }
    if (existsSync(stamp) && readFileSync(stamp, 'utf8') === built) return { library, types }
    // Another command compiled it, and another one wrote types since: compile again, as if a file had changed.
    utimesSync(path.join(root, 'src', 'lib.rs'), new Date(), new Date())
  }
  throw new Error('cargo takes the library for fresh although src/lib.rs is newer')
}

/** Whether the types come from the compilation that was ready at `built`, and from nothing else. */
function isOf(types, built) {
  if (!existsSync(types) || statSync(types).mtimeMs > built) return false
  const lines = readFileSync(types, 'utf8').trimEnd().split('\n')
  return new Set(lines).size === lines.length
}

/** napi writes what Rust knows. This adds the options, from the settings' table, and drops items that only lib/ uses. */
function finishTypes(types, settings) {
  return types
    .split(/\n\n(?=\S)/)
    .filter((declaration) => !/@internal|__napiBindingTarget/.test(declaration))
    .join('\n\n')
    .replace(/^ *\/\/ <settings>\n/m, settings.map(option).join('') + '\n  // What only JavaScript has\n\n')
    .replace('export declare class KiroGateway {\n', 'export declare class KiroGateway {\n  private constructor()\n')
    .trimEnd()
    .concat('\n')
}

/** One row of the table (src/config/table.rs) as a property of GatewayOptions. The first of a group has the heading before it. */
function option({ js, env, form, default: value, meaning, type, group, overrides }, at, all) {
  const heading = group === all[at - 1]?.group ? '' : `${at === 0 ? '' : '\n'}  // ${group}\n\n`
  const allowed = type === 'string' && form !== 'a text' ? [`Must be ${form}.`] : []
  const fact = overrides === null ? [] : [`Overrides (docs/kiro.md): ${overrides}.`]
  const given = value === '' ? [] : [`@default ${js.endsWith('Ms') ? milliseconds(value) : value}`]
  const lines = [meaning, ...allowed, ...fact, `Environment: \`${env}\`.`, ...given]
  return `${heading}  /**\n${lines.map((line) => `   * ${line}\n`).join('')}   */\n  ${js}?: ${type}\n`
}

/** `1m30s` and the like. */
function milliseconds(text) {
  const unit = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 }
  return [...text.matchAll(/(\d+)(ms|s|m|h)/g)].reduce((sum, [, n, u]) => sum + Number(n) * unit[u], 0)
}

if (isProgram(import.meta.url)) {
  const ok = await build(process.argv.includes('--release'))
  process.exit(ok ? 0 : 1)
}
