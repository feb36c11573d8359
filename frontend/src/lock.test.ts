import { readFileSync } from 'node:fs'

import { expect, test } from 'vitest'

test('the lock file names packages and digests, and no addresses', () => {
  const lock = readFileSync(new URL('../package-lock.json', import.meta.url), 'utf8')
  expect(lock).toContain('"integrity"')
  expect(lock).not.toContain('://')
})
