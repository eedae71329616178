// Counts the corpora with @anthropic-ai/tokenizer 0.0.4 and writes reference.json, which tests/estimate_calibration.rs
// compares the estimator with (TU6). Run it when a corpus has changed:
//
//   npm install --no-save @anthropic-ai/tokenizer@0.0.4 && node tests/corpus/reference.mjs
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { countTokens } from '@anthropic-ai/tokenizer'

const here = (name) => new URL(name, import.meta.url)
const counts = {}
for (const name of ['english', 'code', 'json', 'schemas', 'chinese-prose', 'chinese-technical']) {
  const bytes = readFileSync(here(`${name}.txt`))
  counts[name] = {
    sha256: createHash('sha256').update(bytes).digest('hex'),
    tokens: countTokens(bytes.toString('utf8')),
  }
}
writeFileSync(here('reference.json'), `${JSON.stringify({ tokenizer: '@anthropic-ai/tokenizer 0.0.4', counts }, null, 2)}\n`)
