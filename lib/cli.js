#!/usr/bin/env node
'use strict'

/**
 * `npx kiro-messages serve` and every other command: runs the kiro-server of the platform's package. It is the same
 * program as elsewhere, with its flags, its own memory and its own signal handling; this process only stands in front.
 */

const { spawn } = require('node:child_process')
const { accessSync, chmodSync, constants: access } = require('node:fs')
const { constants } = require('node:os')
const { describe, missing } = require('./platform.js')

/** The exit code when the server could not be started (sysexits.h, EX_UNAVAILABLE). */
const UNAVAILABLE = 69
/** Handed on. SIGINT too: the server is in a process group of its own, so that Ctrl-C reaches it once and not twice. */
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT']

const windows = process.platform === 'win32'
const platform = describe()
const binary = find()

if (binary === null) {
  process.exitCode = UNAVAILABLE
} else {
  run(binary, process.argv.slice(2))
}

function find() {
  const tried = []
  for (const name of [platform.package, ...platform.others]) {
    try {
      return require.resolve(`${name}/kiro-server${windows ? '.exe' : ''}`)
    } catch (error) {
      tried.push(error.message.split('\n', 1)[0])
    }
  }
  console.error(`kiro-messages: ${missing(platform, 'there is no kiro-server', tried)}`)
  return null
}

function run(file, args) {
  makeExecutable(file)
  // Its texts then name the command that was typed (N72).
  let child
  try {
    child = spawn(file, args, { stdio: 'inherit', detached: !windows, argv0: 'npx kiro-messages' })
  } catch (error) {
    // Deno without --allow-env.
    return unavailable(file, error)
  }
  const handlers = SIGNALS.map((signal) => {
    // On Windows Ctrl-C reaches every process of the console by itself; here it only must not end this one first.
    const handler = () => {
      if (!windows) child.kill(signal)
    }
    process.on(signal, handler)
    return [signal, handler]
  })
  child.on('error', (error) => unavailable(file, error))
  child.on('exit', (code, signal) => {
    for (const [name, handler] of handlers) process.removeListener(name, handler)
    if (signal === null) process.exitCode = code
    // The same end as the server's, for a parent that looks at ours.
    else if (signal in constants.signals && !windows) process.kill(process.pid, signal)
    else process.exitCode = 1
  })
}

function unavailable(file, error) {
  console.error(`kiro-messages: ${file}: ${error.message}`)
  process.exitCode = UNAVAILABLE
}

/** Some package managers drop the mode. */
function makeExecutable(file) {
  if (windows) return
  try {
    accessSync(file, access.X_OK)
  } catch {
    try {
      chmodSync(file, 0o755)
    } catch {
      // We may not change it: the start shows whether it can be run.
    }
  }
}
