import { expect, test } from 'vitest'

import { readWhy } from './rebalance'

test('why a cap changed is taken apart', () => {
  expect(readWhy('used 30 of 90 tokens last month: its part')).toEqual({
    kind: 'part',
    used: { own: '30', all: '90' },
    leftOver: null,
  })
  expect(
    readWhy('used 0 of 90 tokens last month: its floor, and 2 left over by the division'),
  ).toEqual({ kind: 'floor', used: { own: '0', all: '90' }, leftOver: '2' })
  expect(readWhy('nobody used any tokens last month: it keeps its cap')).toEqual({
    kind: 'kept',
    used: null,
    leftOver: null,
  })
  expect(readWhy('locked: its cap stays')).toEqual({ kind: 'locked', used: null, leftOver: null })
})

test('a sentence that is not known stays as it is', () => {
  expect(readWhy('the moon was full')).toBeNull()
})
