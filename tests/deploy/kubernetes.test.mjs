// deploy/kubernetes.yaml against the schemas of Kubernetes, and against the server, the image and itself.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import test from 'node:test'
import { folder } from '../../__test__/support/stack.mjs'
import { root, serverBinary } from '../../scripts/steps.mjs'

/** A Python with the packages of tests/deploy/requirements.txt. */
const python = process.env.DEPLOY_PYTHON
const skip = python ? false : 'npm run test:deploy installs what it needs'
const manifest = path.join(root, 'deploy', 'kubernetes.yaml')
const text = readFileSync(manifest, 'utf8')

/**
 * Members that Kubernetes doesn't know are refused, and so are kinds and versions, of which the validator only warns. Each
 * resource has its line.
 */
function validate(file) {
  const validator = path.join(path.dirname(python), 'kubernetes-validate')
  const { status, stdout, stderr } = spawnSync(validator, ['--strict', '-k', '1.34', file], { encoding: 'utf8' })
  const said = stdout + stderr
  return { fine: status === 0 && !said.includes('WARN'), said }
}

/** The resources by their kinds. */
function resources() {
  const read = 'import json, sys, yaml; json.dump(list(yaml.safe_load_all(open(sys.argv[1]))), sys.stdout)'
  const { status, stdout, stderr } = spawnSync(python, ['-c', read, manifest], { encoding: 'utf8' })
  assert.equal(status, 0, stderr)
  const all = JSON.parse(stdout)
  const byKind = Object.fromEntries(all.map((one) => [one.kind, one]))
  assert.equal(Object.keys(byKind).length, all.length, 'one of each kind')
  return byKind
}

test('the manifests are ones that Kubernetes takes', { skip }, () => {
  const { fine, said } = validate(manifest)
  assert.ok(fine, said)
  for (const kind of ['secret', 'configmap', 'deployment', 'service', 'poddisruptionbudget'])
    assert.match(said, new RegExp(`passed for resource ${kind}/kiro-server against version 1\\.34`))
})

test('and broken ones are refused', { skip }, async (t) => {
  const broken = [
    ['readOnlyRootFilesystem', 'readOnlyRootFileSystem', /'readOnlyRootFileSystem' was unexpected/],
    ['      terminationGracePeriodSeconds: 70\n', '      lifecycle: {}\n', /'lifecycle' was unexpected/],
    ['replicas: 2', 'replicas: two', /spec\.replicas: 'two' is not of type/],
    ['httpGet: { path: /health, port: http }', 'httpGet: { path: /health }', /'port' is a required property/],
    [/ {2}selector:\n {4}matchLabels: .*\n {2}# The new one/, '  # The new one', /'selector' is a required property/],
    ['apiVersion: policy/v1\n', 'apiVersion: policy/v1beta1\n', /v1beta1/],
    ['kind: Service\n', 'kind: Service: x\n', /mapping values are not allowed/],
  ]
  const file = path.join(folder(t), 'broken.yaml')
  for (const [from, to, why] of broken) {
    const changed = text.replace(from, to)
    assert.notEqual(changed, text, `${from} isn't there`)
    writeFileSync(file, changed)
    const { fine, said } = validate(file)
    assert.ok(!fine, to)
    assert.match(said, why)
  }
})

test('they fit together, the image and the server', { skip }, () => {
  const { Deployment, Service, PodDisruptionBudget, Secret, ConfigMap } = resources()
  const pod = Deployment.spec.template.spec
  const [server] = pod.containers
  assert.equal(pod.containers.length, 1)

  const labels = Deployment.spec.template.metadata.labels
  assert.deepEqual(Deployment.spec.selector.matchLabels, labels)
  assert.deepEqual(PodDisruptionBudget.spec.selector.matchLabels, labels)
  assert.deepEqual(pod.topologySpreadConstraints[0].labelSelector.matchLabels, labels)
  assert.deepEqual(Service.spec.selector, labels)
  assert.ok(PodDisruptionBudget.spec.minAvailable < Deployment.spec.replicas, 'else no node can be drained')

  const image = readFileSync(path.join(root, 'deploy', 'Dockerfile'), 'utf8')
  const [, user, group] = /^USER (\d+):(\d+)$/m.exec(image).map(Number)
  assert.deepEqual([pod.securityContext.runAsUser, pod.securityContext.runAsGroup, pod.securityContext.fsGroup], [user, group, group])
  assert.equal(pod.securityContext.runAsNonRoot, true)
  const { allowPrivilegeEscalation, readOnlyRootFilesystem, capabilities } = server.securityContext
  assert.deepEqual([allowPrivilegeEscalation, readOnlyRootFilesystem, capabilities.drop], [false, true, ['ALL']])
  const [port] = server.ports
  assert.match(image, new RegExp(`^EXPOSE ${port.containerPort}$`, 'm'))
  assert.equal(Service.spec.ports[0].targetPort, port.name)
  assert.deepEqual(server.readinessProbe.httpGet, { path: '/health', port: port.name })
  assert.deepEqual(server.livenessProbe.httpGet, { path: '/health/live', port: port.name })

  // The state lies on a volume, since nothing else can be written.
  const [mount] = server.volumeMounts
  assert.ok(ConfigMap.data.KIRO_STATE_DIR.startsWith(`${mount.mountPath}/`))
  assert.equal(pod.volumes[0].name, mount.name)
  assert.deepEqual(
    server.envFrom.map(({ configMapRef, secretRef }) => configMapRef?.name ?? secretRef.name),
    [ConfigMap.metadata.name, Secret.metadata.name],
  )
  assert.equal(Secret.stringData.KIRO_API_KEY, '', 'a key that everybody knows is none')

  // The server takes these settings, and the cluster waits for longer than the server takes to stop.
  const env = { PATH: process.env.PATH, ...ConfigMap.data, ...Secret.stringData }
  const { status, stdout, stderr } = spawnSync(serverBinary(), ['--print-config'], { encoding: 'utf8', env })
  assert.equal(status, 0, stderr)
  assert.match(stdout, /^KIRO_STATE_DIR = "\/var\/lib\/kiro-server\/state" {2}# environment$/m)
  const grace = Number(/^(\d+)s$/.exec(ConfigMap.data.KIRO_GRACEFUL_TIMEOUT)[1])
  // The released image has no program that could wait.
  assert.equal(server.lifecycle.preStop.exec, undefined)
  const leaving = server.lifecycle.preStop.sleep.seconds
  assert.ok(pod.terminationGracePeriodSeconds >= leaving + grace + 30, 'streams would be cut')
})
