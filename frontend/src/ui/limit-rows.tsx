/** Limits to write: a row for each, with its meter, window and amount. */
import type { Meter } from '@/lib/limits'
import { readWindow } from '@/lib/limits'
import { useWords } from '@/i18n'
import { readAmount } from '@/lib/money'

import { Button, IconButton } from './button'
import { SelectField, TextField } from './field'

export interface LimitRow {
  id: number
  meter: Meter
  window: 'hour' | 'day' | 'month' | 'lifetime' | 'rolling'
  hours: string
  amount: string
}

const WINDOWS = ['hour', 'day', 'month', 'rolling', 'lifetime'] as const

let last = 0

export const newLimitRow = (): LimitRow => ({
  id: ++last,
  meter: 'usd',
  window: 'month',
  hours: '24',
  amount: '',
})

export function limitRow(limit: { meter: Meter; window: string; amount: number | string }): LimitRow {
  const { name, hours } = readWindow(limit.window)
  return {
    id: ++last,
    meter: limit.meter,
    window: name,
    hours: String(hours ?? 24),
    amount: String(limit.amount),
  }
}

export const isLimitRow = (row: LimitRow) =>
  readAmount(row.meter, row.amount) !== null &&
  (row.window !== 'rolling' || /^[1-9]\d{0,3}$/.test(row.hours))

/** As the API takes them; only of rows that are right. */
export const limitsOf = (rows: readonly LimitRow[]) =>
  rows.map((row) => ({
    meter: row.meter,
    window: row.window === 'rolling' ? `rolling:${row.hours}h` : row.window,
    amount: readAmount(row.meter, row.amount)!,
  }))

export function LimitRows({
  rows,
  onChange,
  checked,
  error,
}: {
  rows: LimitRow[]
  onChange: (rows: LimitRow[]) => void
  /** Whether wrong rows say so already. */
  checked: boolean
  error?: string | undefined
}) {
  const { t } = useWords()
  const set = (id: number, changed: Partial<LimitRow>) =>
    onChange(rows.map((row) => (row.id === id ? { ...row, ...changed } : row)))
  return (
    <fieldset className="flex flex-col gap-2">
      <legend className="font-medium">{t('limits.title')}</legend>
      <p className="text-xs text-soft">{t('limits.hint')}</p>
      {rows.map((row) => (
        <div key={row.id} className="flex flex-wrap items-end gap-2 rounded-lg bg-sunk p-2.5">
          <SelectField
            className="min-w-24 flex-1"
            label={t('limits.meter')}
            value={row.meter}
            onChange={(event) => set(row.id, { meter: event.target.value as Meter })}
          >
            <option value="usd">{t('meters.usd')}</option>
            <option value="tokens">{t('meters.tokens')}</option>
          </SelectField>
          <SelectField
            className="min-w-32 flex-1"
            label={t('limits.window')}
            value={row.window}
            onChange={(event) => set(row.id, { window: event.target.value as LimitRow['window'] })}
          >
            {WINDOWS.map((one) => (
              <option key={one} value={one}>
                {t(`limits.windows.${one}`)}
              </option>
            ))}
          </SelectField>
          {row.window === 'rolling' && (
            <TextField
              className="w-20"
              label={t('limits.hours')}
              inputMode="numeric"
              value={row.hours}
              onChange={(event) => set(row.id, { hours: event.target.value })}
            />
          )}
          <TextField
            className="min-w-24 flex-1"
            label={t('limits.amount')}
            inputMode="decimal"
            autoComplete="off"
            value={row.amount}
            error={checked && !isLimitRow(row) ? t('limits.wrong') : undefined}
            onChange={(event) => set(row.id, { amount: event.target.value })}
          />
          <IconButton
            icon="trash"
            label={t('limits.remove')}
            onClick={() => onChange(rows.filter((one) => one.id !== row.id))}
          />
        </div>
      ))}
      {error && (
        <p role="alert" lang="en" className="text-xs font-medium text-bad-ink">
          {error}
        </p>
      )}
      <div>
        <Button icon="plus" onClick={() => onChange([...rows, newLimitRow()])}>
          {t('limits.add')}
        </Button>
      </div>
    </fieldset>
  )
}
