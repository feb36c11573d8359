import { expect, test } from 'vitest'

import { readCap, writeCap } from './caps'

test('nothing is no cap, 0 blocks', () => {
  expect(readCap('usd', ' ')).toBeNull()
  expect(readCap('tokens', '')).toBeNull()
  expect(readCap('usd', '0')).toBe('0')
  expect(readCap('tokens', '0')).toBe(0)
})

test('amounts are read as people write them, and what is none is told apart from no cap', () => {
  expect(readCap('usd', '$1,200.50')).toBe('1200.50')
  expect(readCap('tokens', '1.5M')).toBe(1_500_000)
  for (const odd of ['-1', 'ten', '1e3', '1,2']) {
    expect(readCap('usd', odd), odd).toBeUndefined()
    expect(readCap('tokens', odd), odd).toBeUndefined()
  }
})

test('a cap that is written is read as the same', () => {
  expect(readCap('usd', writeCap('0.60'))).toBe('0.60')
  expect(readCap('tokens', writeCap(5000))).toBe(5000)
  expect(readCap('usd', writeCap(null))).toBeNull()
})
