// deploy/alerts.yml and deploy/grafana.json under the real promtool and the real Prometheus, scraping a kiro-server.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { accounts, ask, folder, freePort, server, simulator, start, until } from '../../__test__/support/stack.mjs'
import { root } from '../../scripts/steps.mjs'

const deploy = (name) => path.join(root, 'deploy', name)

test('promtool: the alert rules are valid, and speak when they should', () => {
  for (const args of [['check', 'rules', deploy('alerts.yml')], ['test', 'rules', path.join(root, 'tests', 'deploy', 'alerts.yml')]]) {
    const { status, stdout, stderr } = spawnSync('promtool', args, { encoding: 'utf8' })
    assert.equal(status, 0, stdout + stderr)
  }
})

test('each query of the dashboard and of the alerts means something to Prometheus', { timeout: 60_000 }, async (t) => {
  const sim = await simulator(t)
  // Named keys: one for the load, and one that has had its request of the minute.
  const keysFile = path.join(folder(t), 'keys.json')
  const namedKey = (name, more) => ({ name, sha256: createHash('sha256').update(name).digest('hex'), ...more })
  writeFileSync(keysFile, JSON.stringify({ keys: [namedKey('load'), namedKey('slow', { rpm: 1 })] }), { mode: 0o600 })
  const kiro = await server(t, sim, accounts(t, 'sim-ok.one', 'sim-ok.two'), { KIRO_API_KEYS_FILE: keysFile })
  const prometheus = await scraping(t, new URL(kiro.url).host)

  const post = (body, key = 'load') =>
    fetch(`${kiro.url}/v1/messages`, { method: 'POST', headers: { 'x-api-key': key }, body: JSON.stringify(body) }).then((answer) => answer.text())
  let running = true
  const load = (async () => {
    while (running) {
      await post(ask({ text: 'fine', steps: [{ event: 'newEvent', payload: {} }] }, { stream: true }))
      await post(ask({ text: 'metered', usage: true }))
      await post(ask('500'))
      await post({ ...ask(), model: 'claude-none' })
      await post(ask({ text: 'one too many' }), 'slow')
      await fetch(`${kiro.url}/nowhere`)
    }
  })()
  const count = async () => (await prometheus('count_over_time(kiro_build_info[1m])'))[0]?.value[1]
  try {
    await until(async () => Number(await count()) >= 6, 'six scrapes', 40_000)
  } finally {
    running = false
    await load
  }

  const { panels, annotations, templating } = JSON.parse(readFileSync(deploy('grafana.json'), 'utf8'))
  const targets = panels.flatMap((panel) => (panel.targets ?? []).map(({ expr }) => ({ expr, where: panel.title })))
  targets.push(...annotations.list.filter(({ expr }) => expr).map(({ expr, name }) => ({ expr, where: name, mayBeEmpty: true })))
  assert.ok(targets.length > 40)
  for (const { expr, where, mayBeEmpty } of targets) {
    const query = expr.replaceAll('$__rate_interval', '30s').replaceAll('$instance', '.*')
    assert.ok(!query.includes('$'), `${where}: a variable that nobody sets: ${expr}`)
    const result = await prometheus(query)
    assert.ok(mayBeEmpty || result.length > 0, `${where}: nothing comes of ${query}`)
  }
  const label = /^label_values\((\w+), (\w+)\)$/.exec(templating.list.find(({ name }) => name === 'instance').query.query)
  assert.ok((await prometheus(label[1]))[0].metric[label[2]])

  // Whatever a rule names is a metric that the server has, whether or not the rule has something to say now.
  const there = new Set((await (await fetch(`${kiro.url}/metrics`)).text()).match(/^\w+/gm))
  const named = readFileSync(deploy('alerts.yml'), 'utf8').replace(/^ *(?:summary|description):.*|#.*$/gm, '').match(/\b(?:kiro|process)_\w+/g)
  assert.ok(named.length > 10)
  for (const name of named) assert.ok(there.has(name), `${name} is no metric`)
  await t.test('and the rules are evaluated without an error', async () => {
    const { groups } = await prometheus.rules()
    assert.equal(groups.length, 1)
    for (const rule of groups[0].rules) assert.equal(rule.lastError ?? '', '', rule.name)
  })
})

/** A Prometheus of the test's own; a function that asks it. */
async function scraping(t, target) {
  const dir = folder(t)
  const port = await freePort()
  const config = {
    global: { scrape_interval: '1s', evaluation_interval: '1s' },
    rule_files: [deploy('alerts.yml')],
    scrape_configs: [{ job_name: 'kiro-server', static_configs: [{ targets: [target] }] }],
  }
  // JSON is YAML.
  writeFileSync(path.join(dir, 'prometheus.yml'), JSON.stringify(config))
  const child = start(t, 'prometheus', [
    `--config.file=${dir}/prometheus.yml`,
    `--storage.tsdb.path=${dir}/data`,
    `--web.listen-address=127.0.0.1:${port}`,
    '--log.level=warn',
  ])
  const url = `http://127.0.0.1:${port}`
  await until(async () => (await fetch(`${url}/-/ready`).catch(() => null))?.ok, `prometheus\n${child.output}`, 30_000)
  const api = async (route) => {
    const { status, error, data } = await (await fetch(`${url}/api/v1/${route}`)).json()
    assert.equal(status, 'success', `${decodeURIComponent(route)}: ${error}`)
    return data
  }
  const query = async (expr) => (await api(`query?query=${encodeURIComponent(expr)}`)).result
  return Object.assign(query, { rules: () => api('rules') })
}
