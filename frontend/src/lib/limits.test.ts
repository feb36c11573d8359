import { describe, expect, test } from 'vitest'

import { partsOf, readWindow } from './limits'

const usd = (amount: string | null, used: string, held = '0') =>
  partsOf({ meter: 'usd', amount, used, held })

describe('the three parts of a bar', () => {
  test('add up to all of it', () => {
    const parts = usd('10', '6', '1')
    expect([parts.used, parts.held]).toEqual([0.6, 0.1])
    expect(parts.left).toBeCloseTo(0.3)
    expect(parts.remaining).toBe('3.00')
  })

  test('never reach beyond its end', () => {
    const parts = usd('10', '9', '4')
    expect(parts.used + parts.held).toBe(1)
    expect(parts.left).toBe(0)
    expect(parts.remaining).toBe('0.00')
    expect(usd('10', '12').used).toBe(1)
  })

  test('of no limit are empty, of a limit of 0 full', () => {
    expect(usd(null, '5')).toMatchObject({ state: 'unlimited', remaining: null, left: 1 })
    expect(usd('0', '0')).toMatchObject({ state: 'exhausted', used: 1, share: null })
  })

  test('of tokens are counted in tokens', () => {
    const parts = partsOf({ meter: 'tokens', amount: 1000, used: 250, held: 50 })
    expect(parts).toMatchObject({ used: 0.25, held: 0.05, remaining: 700, state: 'ok' })
  })
})

test.each([
  ['7.499999999', 'ok'],
  ['7.5', 'near'],
  ['8.999999999', 'near'],
  ['9', 'critical'],
  ['9.999999999', 'critical'],
  ['10', 'exhausted'],
])('%s of 10 is %s', (used, state) => expect(usd('10', used).state).toBe(state))

test('windows are taken apart', () => {
  expect(readWindow('month')).toEqual({ name: 'month' })
  expect(readWindow('rolling:24h')).toEqual({ name: 'rolling', hours: 24 })
})
