/** Many allocations at once: chosen rows changed alike, or a sheet that adds them; tried first. */
import { useMutation, useQuery } from '@tanstack/react-query'
import { type ReactNode, useEffect, useRef, useState } from 'react'

import {
  type AllocationPatch,
  type AllocationRow,
  type BulkResult,
  SPEND,
  poolsQuery,
} from '@/api/admin-spend'
import { api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { faultWords } from '@/i18n/errors'
import { readCap } from '@/lib/caps'
import type { Meter } from '@/lib/limits'
import { Button } from '@/ui/button'
import { Dialog, DialogActions } from '@/ui/dialog'
import { CheckField, SelectField, TextArea, TextField } from '@/ui/field'
import { Icon } from '@/ui/icons'
import { StateBadge, ToneBadge } from '@/ui/meter'
import { Problem } from '@/ui/page'
import { DataTable } from '@/ui/table'
import { toast } from '@/ui/toast'

// Trying before doing

/** Sends it twice: once to see what would become of each row, and once to do it. */
function useTrial(send: (dryRun: boolean) => Promise<BulkResult>, onDone: (rows: number) => void) {
  const refresh = useRefresh()
  const check = useMutation({ mutationFn: () => send(true) })
  const run = useMutation({
    mutationFn: () => send(false),
    onSuccess: async (done) => {
      await refresh(SPEND)
      onDone(done.rows.length)
    },
  })
  return {
    check,
    run,
    error: run.error ?? check.error,
    fine: check.data?.rows.every((row) => row.ok) ?? false,
    /** What was tried is not what is asked for any more. */
    forget: () => {
      check.reset()
      run.reset()
    },
  }
}

/** A form that is tried until all of its rows are fine; then it can be done. */
function TrialForm({
  trial: { check, run, error, fine },
  tryIt,
  apply,
  look = 'main',
  onClose,
  children,
  ...rows
}: {
  trial: ReturnType<typeof useTrial>
  tryIt: () => void
  apply: string
  look?: 'main' | 'destroy'
  onClose: () => void
  children: ReactNode
  nameOf: (row: Row) => string | undefined
  sheet?: boolean
}) {
  const { t } = useWords()
  return (
    <form
      noValidate
      className="flex flex-col gap-4"
      onSubmit={(event) => {
        event.preventDefault()
        if (fine) run.mutate()
        else tryIt()
      }}
    >
      {error && <Problem error={error} />}
      {children}
      {check.data && <Tried result={check.data} {...rows} />}
      <DialogActions>
        <Button onClick={onClose}>{t('common.cancel')}</Button>
        <Button
          type={fine ? 'button' : 'submit'}
          look={fine ? 'plain' : 'main'}
          busy={check.isPending}
          onClick={fine ? tryIt : undefined}
        >
          {t('adminAllocations.bulk.check')}
        </Button>
        {fine && (
          <Button type="submit" look={look} busy={run.isPending}>
            {apply}
          </Button>
        )}
      </DialogActions>
    </form>
  )
}

// Changing many alike

const STATUSES = ['active', 'paused', 'quarantined', 'revoked'] as const

interface Change {
  usd: string | null
  tokens: string | null
  pool_id: string | null
  status: string | null
}

export function BulkDialog({
  rows,
  onClose,
  onDone,
}: {
  rows: AllocationRow[]
  onClose: () => void
  onDone: () => void
}) {
  const { t } = useWords()
  const pools = useQuery(poolsQuery)
  const [given, setGiven] = useState<Change>({
    usd: null,
    tokens: null,
    pool_id: null,
    status: null,
  })
  const [reason, setReason] = useState('')
  const [tried, setTried] = useState(false)
  const caps = (['usd', 'tokens'] as const).map((meter) => {
    const typed = given[meter]
    return [meter, typed === null ? null : readCap(meter as Meter, typed)] as const
  })
  const wrong = caps.filter(([, read]) => read === undefined).map(([meter]) => meter)
  const nothing = Object.values(given).every((one) => one === null)
  const changes = (): AllocationPatch => ({
    ...(given.usd === null ? {} : { quota_cost_usd_per_month: readCap('usd', given.usd)! }),
    ...(given.tokens === null ? {} : { quota_tokens_per_month: readCap('tokens', given.tokens)! }),
    ...(given.pool_id === null ? {} : { pool_id: given.pool_id || null }),
    ...(given.status === null ? {} : { status: given.status as AllocationRow['status'] }),
  })
  const send = (dry_run: boolean) =>
    ok(
      api.POST('/api/admin/allocations/bulk', {
        body: {
          ids: rows.map((row) => row.id),
          changes: changes(),
          reason: reason.trim(),
          dry_run,
        },
      }),
    )
  const trial = useTrial(send, (count) => {
    toast(t('adminAllocations.bulk.done', { count }))
    onDone()
  })
  const set = (some: Partial<Change>) => {
    trial.forget()
    setGiven((before) => ({ ...before, ...some }))
  }
  const names = new Map(rows.map((row) => [row.id, row.name]))
  const tryIt = () => {
    setTried(true)
    if (!nothing && wrong.length === 0 && reason.trim()) trial.check.mutate()
  }
  const blocks = trial.check.data?.rows.some(
    ({ state_before: before, state_after: after }) =>
      before !== after && (after === 'exhausted' || after === 'paused'),
  )
  return (
    <Dialog
      open
      wide
      onClose={onClose}
      title={t('adminAllocations.bulk.title', { count: rows.length })}
      about={t('adminAllocations.bulk.about')}
    >
      <TrialForm
        trial={trial}
        tryIt={tryIt}
        apply={t('adminAllocations.bulk.apply', { count: rows.length })}
        look={blocks ? 'destroy' : 'main'}
        onClose={onClose}
        nameOf={(row) => names.get(row.id ?? '')}
      >
        <fieldset className="flex flex-col gap-2">
          <legend className="mb-1 font-medium">{t('adminAllocations.bulk.change')}</legend>
          {(['usd', 'tokens'] as const).map((meter) => (
            <Part
              key={meter}
              label={t(`adminAllocations.caps.${meter}`)}
              on={given[meter] !== null}
              onChange={(on) => set({ [meter]: on ? '' : null })}
            >
              <TextField
                label={t(`adminAllocations.caps.${meter}`)}
                hiddenLabel
                hint={t('adminAllocations.caps.hint')}
                autoComplete="off"
                value={given[meter] ?? ''}
                error={wrong.includes(meter) ? t('adminAllocations.errors.cap') : undefined}
                onChange={(event) => set({ [meter]: event.target.value })}
              />
            </Part>
          ))}
          <Part
            label={t('adminAllocations.pool')}
            on={given.pool_id !== null}
            onChange={(on) => set({ pool_id: on ? '' : null })}
          >
            <SelectField
              label={t('adminAllocations.pool')}
              hiddenLabel
              value={given.pool_id ?? ''}
              onChange={(event) => set({ pool_id: event.target.value })}
            >
              <option value="">{t('adminAllocations.noPool')}</option>
              {pools.data?.map((one) => (
                <option key={one.id} value={one.id}>
                  {one.name}
                </option>
              ))}
            </SelectField>
          </Part>
          <Part
            label={t('adminAllocations.status')}
            on={given.status !== null}
            onChange={(on) => set({ status: on ? 'paused' : null })}
          >
            <SelectField
              label={t('adminAllocations.status')}
              hiddenLabel
              hint={given.status ? t(`adminAllocations.toEffect.${given.status}`) : undefined}
              value={given.status ?? 'paused'}
              onChange={(event) => set({ status: event.target.value })}
            >
              {STATUSES.map((one) => (
                <option key={one} value={one}>
                  {t(`adminAllocations.statuses.${one}`)}
                </option>
              ))}
            </SelectField>
          </Part>
          {tried && nothing && (
            <p className="text-xs font-medium text-bad-ink" role="alert">
              {t('adminAllocations.bulk.nothing')}
            </p>
          )}
        </fieldset>
        <TextArea
          label={t('adminAllocations.caps.reason')}
          hint={t('adminAllocations.reasonHint')}
          rows={2}
          maxLength={500}
          value={reason}
          error={tried && !reason.trim() ? t('adminAllocations.caps.reasonMissing') : undefined}
          onChange={(event) => setReason(event.target.value)}
        />
      </TrialForm>
    </Dialog>
  )
}

/** One thing that may be changed: what is not ticked stays as it is in each row. */
function Part({
  label,
  on,
  onChange,
  children,
}: {
  label: string
  on: boolean
  onChange: (on: boolean) => void
  children: ReactNode
}) {
  return (
    <div className="grid items-start gap-x-4 gap-y-1 rounded-lg border border-line px-3 py-1.5 sm:min-h-13 sm:grid-cols-[14rem_1fr]">
      <CheckField label={label} checked={on} onChange={(event) => onChange(event.target.checked)} />
      {on && <div className="py-0.5">{children}</div>}
    </div>
  )
}

// A sheet

const EXAMPLE = `email,name,models,quota_cost_usd_per_month,quota_tokens_per_month,pool
ada@example.org,Course,gpt-4o-mini gpt-4o,10,500000,Lab`

export function ImportDialog({ onClose }: { onClose: () => void }) {
  const { t } = useWords()
  const [csv, setCsv] = useState('')
  const [reason, setReason] = useState('')
  const [tried, setTried] = useState(false)
  const send = (dry_run: boolean) =>
    ok(
      api.POST('/api/admin/allocations/import', {
        body: { csv, dry_run, reason: reason.trim() || null },
      }),
    )
  const trial = useTrial(send, (count) => {
    toast(t('adminAllocations.import.done', { count }))
    onClose()
  })
  const take = (text: string) => {
    trial.forget()
    setCsv(text)
  }
  const tryIt = () => {
    setTried(true)
    if (csv.trim()) trial.check.mutate()
  }
  return (
    <Dialog
      open
      wide
      onClose={onClose}
      title={t('adminAllocations.import.title')}
      about={t('adminAllocations.import.about')}
    >
      <TrialForm
        trial={trial}
        tryIt={tryIt}
        apply={t('adminAllocations.import.apply', { count: trial.check.data?.rows.length ?? 0 })}
        onClose={onClose}
        nameOf={(row) => row.name ?? undefined}
        sheet
      >
        <TextField
          label={t('adminAllocations.import.file')}
          type="file"
          accept=".csv,text/csv"
          onChange={(event) => void event.target.files?.[0]?.text().then(take)}
        />
        <TextArea
          label={t('adminAllocations.import.csv')}
          hint={t('adminAllocations.import.csvHint')}
          rows={7}
          spellCheck={false}
          wrap="off"
          placeholder={EXAMPLE}
          value={csv}
          error={tried && !csv.trim() ? t('adminAllocations.import.empty') : undefined}
          onChange={(event) => take(event.target.value)}
        />
        <TextArea
          label={t('adminAllocations.reason')}
          hint={t('adminAllocations.reasonHint')}
          rows={2}
          maxLength={500}
          value={reason}
          onChange={(event) => setReason(event.target.value)}
        />
      </TrialForm>
    </Dialog>
  )
}

// What a dry run says

type Row = BulkResult['rows'][number]
const SHOWN = 100

/** The rows that cannot be taken, or what becomes of each if all can. */
function Tried({
  result,
  nameOf,
  sheet = false,
}: {
  result: BulkResult
  nameOf: (row: Row) => string | undefined
  /** Rows are lines of a sheet below its header. */
  sheet?: boolean
}) {
  const { t } = useWords()
  const bad = result.rows.filter((row) => !row.ok)
  const shown = (bad.length > 0 ? bad : result.rows).slice(0, SHOWN)
  const fine = bad.length === 0
  const section = useRef<HTMLElement>(null)
  useEffect(() => {
    section.current?.scrollIntoView({ block: 'nearest' })
  }, [result])
  return (
    <section
      ref={section}
      aria-label={t('adminAllocations.bulk.result')}
      className="overflow-hidden rounded-lg border border-line"
    >
      <p
        role="status"
        className={`flex items-start gap-2 px-4 py-2 font-medium ${fine ? 'bg-accent-wash text-accent-strong' : 'bg-bad-wash text-bad-ink'}`}
      >
        <Icon name={fine ? 'check' : 'warning'} className="mt-1" />
        {fine
          ? t('adminAllocations.bulk.fine', { count: result.rows.length })
          : t('adminAllocations.bulk.bad', { count: bad.length, all: result.rows.length })}
      </p>
      <DataTable
        caption={t('adminAllocations.bulk.result')}
        rows={shown}
        id={(row) => String(row.row)}
        columns={[
          ...(sheet
            ? [
                {
                  name: 'line',
                  head: t('adminAllocations.import.line'),
                  cell: (row: Row) => row.row + 2,
                },
              ]
            : []),
          {
            name: 'name',
            head: t('adminAllocations.allocation'),
            title: true,
            cell: (row: Row) => nameOf(row) ?? '—',
          },
          {
            name: 'result',
            head: fine && !sheet ? t('adminAllocations.state') : t('adminAllocations.bulk.result'),
            wide: true,
            cell: (row: Row) => <Outcome row={row} />,
          },
        ]}
      />
    </section>
  )
}

function Outcome({ row }: { row: Row }) {
  const { t } = useWords()
  if (!row.ok) {
    const words = faultWords(row.code, row.values)
    return (
      <span className="text-bad-ink">
        {words ?? <span lang="en">{row.message}</span>}
      </span>
    )
  }
  if (!row.state_before || !row.state_after)
    return <ToneBadge tone="good" icon="check" label={t('adminAllocations.bulk.ok')} />
  if (row.state_before === row.state_after) return <StateBadge state={row.state_after} />
  return (
    <span className="inline-flex flex-wrap items-center gap-1.5">
      <StateBadge state={row.state_before} />
      <Icon name="right" className="text-soft" />
      <span className="sr-only">{t('adminAllocations.caps.becomes')}</span>
      <StateBadge state={row.state_after} />
    </span>
  )
}
