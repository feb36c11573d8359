import { describe, expect, test } from 'vitest'

import {
  formatCount,
  formatPercent,
  formatUsd,
  formatUsdExact,
  fromPico,
  pico,
  readAmount,
  readCount,
  readUsd,
  sumUsd,
} from './money'

describe('USD as people read them', () => {
  test.each([
    ['0', '$0.00'],
    ['6.1', '$6.10'],
    ['1234567.891', '$1,234,567.89'],
    ['0.6', '$0.60'],
    ['0.0117', '$0.0117'],
    ['0.0000098', '$0.0000098'],
    ['0.000000001', '$0.000000001'],
    ['-2.5', '-$2.50'],
  ])('%s is %s', (amount, shown) => expect(formatUsd(amount, 'en-US')).toBe(shown))

  test('what is left is never rounded up to what is not there', () => {
    expect(formatUsd('49.999', 'en-US')).toBe('$50.00')
    expect(formatUsd('49.999', 'en-US', 'down')).toBe('$49.99')
  })

  test('where $ could be another currency, it says which', () => {
    expect(formatUsd('6.1', 'zh-TW')).toBe('US$6.10')
  })

  test('to the last digit, beyond what a float can hold', () => {
    expect(formatUsdExact('12345678901.123456789', 'en-US')).toBe('$12,345,678,901.123456789')
  })
})

test('counts have separators, and shares are cut, not rounded', () => {
  expect(formatCount(9999706, 'en-US')).toBe('9,999,706')
  expect(formatCount('0.5', 'en-US')).toBe('0.5')
  expect(formatPercent(0.999, 'en-US')).toBe('99%')
  expect(formatPercent(0.0002, 'en-US')).toBe('< 1%')
  expect(formatPercent(0, 'en-US')).toBe('0%')
})

test('sums are exact', () => {
  expect(sumUsd(['0.1', '0.2'])).toBe('0.30')
  expect(sumUsd(['9007199254740993.000000001', '0.000000001'])).toBe('9007199254740993.000000002')
  expect(sumUsd([])).toBe('0.00')
  expect(fromPico(pico('-0.05'))).toBe('-0.05')
})

describe('amounts as people type them', () => {
  test.each([
    ['10', '10'],
    [' $1,200.50 ', '1200.50'],
    ['US$ 3', '3'],
    ['0', '0'],
    ['', null],
    ['-1', null],
    ['1e3', null],
    ['1.0000000001', null],
    ['ten', null],
  ])('USD %s', (text, read) => expect(readUsd(text)).toBe(read))

  test.each([
    ['5000', 5000],
    ['5,000', 5000],
    ['5k', 5000],
    ['1.5M', 1_500_000],
    ['1.5', null],
    ['1.2345k', null],
    ['', null],
    ['-5', null],
    ['9007199254740993', null],
  ])('count %s', (text, read) => expect(readCount(text)).toBe(read))

  test('of a meter, as the API takes it', () => {
    expect(readAmount('usd', '$2')).toBe('2')
    expect(readAmount('tokens', '2k')).toBe('2000')
    expect(readAmount('tokens', '$2')).toBeNull()
  })
})
