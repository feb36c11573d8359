import { expect, test } from 'vitest'

import { differsFromUtc, formatDay, formatDuration, formatRelative, formatTime, formatUtc, isoDate } from './time'

const at = new Date('2026-12-01T00:00:00Z')
const now = new Date('2026-11-23T09:00:00Z')

test('an instant is written by the reader’s clock and language', () => {
  const zone = { timeZone: 'Asia/Taipei', now }
  expect(formatTime(at, { locale: 'en-US', ...zone })).toBe('Dec 1, 08:00')
  expect(formatTime(at, { locale: 'zh-TW', ...zone })).toBe('12月1日 08:00')
  expect(formatTime(at, { locale: 'en-US', timeZone: 'America/New_York', now })).toBe('Nov 30, 19:00')
})

test('midnight is 00:00, and another year is told', () => {
  expect(formatTime(at, { locale: 'en-US', timeZone: 'UTC', now })).toBe('Dec 1, 00:00')
  const earlier = new Date('2025-12-01T00:00:00Z')
  expect(formatTime(earlier, { locale: 'en-US', timeZone: 'UTC', now })).toBe('Dec 1, 2025, 00:00')
})

test('UTC says that it is UTC', () => {
  expect(formatUtc(at, { locale: 'en-US', now })).toBe('Dec 1, 00:00 UTC')
  expect(differsFromUtc(at, 'Asia/Taipei')).toBe(true)
  expect(differsFromUtc(at, 'UTC')).toBe(false)
})

test('a calendar date stays the date that it is, wherever one reads it', () => {
  expect(formatDay('2026-11-23', 'en-US')).toBe('Nov 23')
  expect(isoDate(new Date('2026-11-22T20:00:00Z'), 'Asia/Taipei')).toBe('2026-11-23')
})

test('from now on, and until now', () => {
  expect(formatRelative(at, 'en', now)).toBe('in 7 days')
  expect(formatRelative(new Date('2026-11-23T08:58:00Z'), 'en', now)).toBe('2 minutes ago')
  expect(formatRelative(at, 'zh-TW', now)).toBe('7 天後')
})

test('how long something runs', () => {
  expect([7, 63, 3723].map(formatDuration)).toEqual(['0:07', '1:03', '1:02:03'])
})
