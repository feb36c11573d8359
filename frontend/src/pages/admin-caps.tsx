/** The caps editor: it shows before saving what the new caps will do, and asks why. */
import { keepPreviousData, useMutation, useQuery } from '@tanstack/react-query'
import { type FormEvent, useDeferredValue, useEffect, useState } from 'react'

import {
  type AllocationRow,
  type CapPreview,
  type Caps,
  type Preview,
  SPEND,
  previewQuery,
} from '@/api/admin-spend'
import { api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { fieldError } from '@/i18n/errors'
import { readCap, writeCap } from '@/lib/caps'
import type { Meter as MeterName } from '@/lib/limits'
import { Button } from '@/ui/button'
import { Dialog, DialogActions } from '@/ui/dialog'
import { TextArea, TextField } from '@/ui/field'
import { When, useAmount } from '@/ui/format'
import { Icon, type IconName } from '@/ui/icons'
import { useLimitName } from '@/ui/limit-name'
import { Meter, StateBadge, type Tone } from '@/ui/meter'
import { Problem } from '@/ui/page'
import { toast } from '@/ui/toast'

export function CapsDialog({ row, onClose }: { row: AllocationRow; onClose: () => void }) {
  const { t } = useWords()
  return (
    <Dialog
      open
      onClose={onClose}
      title={t('adminAllocations.caps.title', { name: row.name })}
      about={t('adminAllocations.caps.about')}
    >
      <CapsForm row={row} onClose={onClose} />
    </Dialog>
  )
}

const WAIT_MS = 200

/** A value once nobody has typed for a moment. */
function useSettled<T>(value: T): T {
  const [settled, setSettled] = useState(value)
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), WAIT_MS)
    return () => clearTimeout(timer)
  }, [value])
  return useDeferredValue(settled)
}

function CapsForm({ row, onClose }: { row: AllocationRow; onClose: () => void }) {
  const { t } = useWords()
  const refresh = useRefresh()
  const [usd, setUsd] = useState(writeCap(row.quota_cost_usd_per_month))
  const [tokens, setTokens] = useState(writeCap(row.quota_tokens_per_month))
  const [reason, setReason] = useState('')
  const [tried, setTried] = useState(false)
  const read = { usd: readCap('usd', usd), tokens: readCap('tokens', tokens) }
  const caps: Caps | null =
    read.usd === undefined || read.tokens === undefined
      ? null
      : { quota_cost_usd_per_month: read.usd, quota_tokens_per_month: read.tokens }
  const asked = useSettled(JSON.stringify(caps))
  const shownCaps = JSON.parse(asked) as Caps | null
  const preview = useQuery({
    ...previewQuery(row.id, shownCaps ?? { quota_cost_usd_per_month: null, quota_tokens_per_month: null }),
    enabled: shownCaps !== null,
    placeholderData: keepPreviousData,
  })
  const current = asked === JSON.stringify(caps) && !preview.isPlaceholderData
  const save = useMutation({
    mutationFn: () =>
      ok(
        api.PATCH('/api/admin/allocations/{id}', {
          params: { path: { id: row.id } },
          body: { ...caps!, reason: reason.trim() },
        }),
      ),
    onSuccess: async () => {
      await refresh(SPEND)
      toast(t('adminAllocations.caps.saved', { name: row.name }))
      onClose()
    },
  })
  const submit = (event: FormEvent) => {
    event.preventDefault()
    setTried(true)
    if (caps !== null && reason.trim()) save.mutate()
  }
  const error = (meter: MeterName, field: string) =>
    read[meter] === undefined
      ? t('adminAllocations.errors.cap')
      : (fieldError(save.error, field) ?? fieldError(preview.error, field))
  const blocks = current && preview.data?.blocks_now && preview.data.state !== 'exhausted'
  return (
    <form onSubmit={submit} className="flex flex-col gap-4" noValidate>
      {save.error && <Problem error={save.error} />}
      <div className="grid gap-4 sm:grid-cols-2">
        <TextField
          label={t('adminAllocations.caps.usd')}
          hint={t('adminAllocations.caps.hint')}
          inputMode="decimal"
          autoComplete="off"
          value={usd}
          error={error('usd', 'quota_cost_usd_per_month')}
          onChange={(event) => setUsd(event.target.value)}
        />
        <TextField
          label={t('adminAllocations.caps.tokens')}
          hint={t('adminAllocations.caps.tokensHint')}
          autoComplete="off"
          value={tokens}
          error={error('tokens', 'quota_tokens_per_month')}
          onChange={(event) => setTokens(event.target.value)}
        />
      </div>
      <section
        aria-label={t('adminAllocations.caps.effect')}
        aria-live="polite"
        aria-busy={!current}
        className="flex min-h-24 flex-col gap-3 rounded-lg border border-line bg-sunk/60 p-3"
      >
        <h3 className="font-medium">{t('adminAllocations.caps.effect')}</h3>
        {preview.error && !fieldError(preview.error, 'quota_cost_usd_per_month') ? (
          <Problem error={preview.error} retry={() => void preview.refetch()} />
        ) : (
          caps !== null &&
          preview.data && (
            <div className={current ? '' : 'opacity-60'}>
              <Effect preview={preview.data} row={row} />
            </div>
          )
        )}
      </section>
      <TextArea
        label={t('adminAllocations.caps.reason')}
        hint={t('adminAllocations.reasonHint')}
        rows={2}
        maxLength={500}
        value={reason}
        error={
          tried && !reason.trim()
            ? t('adminAllocations.caps.reasonMissing')
            : fieldError(save.error, 'reason')
        }
        onChange={(event) => setReason(event.target.value)}
      />
      <DialogActions>
        <Button onClick={onClose}>{t('common.cancel')}</Button>
        <Button
          type="submit"
          look={blocks ? 'destroy' : 'main'}
          busy={save.isPending}
          disabled={caps === null}
        >
          {blocks ? t('adminAllocations.caps.saveBlocks') : t('adminAllocations.caps.save')}
        </Button>
      </DialogActions>
    </form>
  )
}

const LOOKS: Record<Tone, string> = {
  good: 'text-accent-strong',
  warn: 'text-near-ink',
  bad: 'text-bad-ink font-medium',
  idle: 'text-soft',
}

function Effect({ preview, row }: { preview: Preview; row: AllocationRow }) {
  const { t } = useWords()
  const shown = useAmount()
  const limitName = useLimitName()
  const { binds } = preview
  const paused = row.status !== 'active'
  const lines: { tone: Tone; icon: IconName; text: string }[] = []
  for (const meter of ['usd', 'tokens'] as const) {
    const cap = preview[meter]
    const used = shown(meter, cap.used)
    if (cap.new_effective === null) continue
    if (cap.blocks_now)
      lines.push({ tone: 'bad', icon: 'stop', text: t('adminAllocations.caps.blocks', { used }) })
    else
      lines.push({
        tone: 'good',
        icon: 'check',
        text: t('adminAllocations.caps.leaves', {
          used,
          left: shown(meter, cap.new_remaining!, 'down'),
        }),
      })
  }
  if (preview.sessions_ending > 0)
    lines.push({ tone: 'bad', icon: 'live', text: t('adminAllocations.caps.ending', { count: preview.sessions_ending }) })
  else if (preview.live_sessions > 0)
    lines.push({ tone: 'idle', icon: 'live', text: t('adminAllocations.caps.goOn', { count: preview.live_sessions }) })
  if (preview.calls_in_flight > 0)
    lines.push({ tone: 'idle', icon: 'clock', text: t('adminAllocations.caps.inFlight', { count: preview.calls_in_flight }) })
  if (binds && binds.owner !== 'allocation')
    lines.push({
      tone: 'warn',
      icon: 'pool',
      text: t('adminAllocations.caps.binds', {
        limit: limitName(binds, binds.owner_name),
        left: shown(binds.meter, binds.remaining, 'down'),
      }),
    })
  if (paused)
    lines.push({ tone: 'idle', icon: 'pause', text: t('adminAllocations.caps.inactive') })
  if (!binds) lines.push({ tone: 'idle', icon: 'infinity', text: t('adminAllocations.caps.free') })
  return (
    <div className="flex flex-col gap-3">
      <p className="flex flex-wrap items-center gap-2">
        <StateBadge state={preview.state} />
        <Icon name="right" className="text-soft" />
        <span className="sr-only">{t('adminAllocations.caps.becomes')}</span>
        <StateBadge state={preview.new_state} />
        {preview.resets_at && preview.blocks_now && (
          <span className="text-xs text-soft">
            {t('adminAllocations.caps.until')} <When at={preview.resets_at} />
          </span>
        )}
      </p>
      <div className="grid gap-x-6 gap-y-3 sm:grid-cols-2">
        <NewCap meter="usd" cap={preview.usd} paused={paused} />
        <NewCap meter="tokens" cap={preview.tokens} paused={paused} />
      </div>
      <ul className="flex flex-col gap-1.5">
        {lines.map(({ tone, icon, text }) => (
          <li key={text} className={`flex items-start gap-2 ${LOOKS[tone]}`}>
            <Icon name={icon} className="mt-1" />
            {text}
          </li>
        ))}
      </ul>
    </div>
  )
}

function NewCap({ meter, cap, paused }: { meter: MeterName; cap: CapPreview; paused: boolean }) {
  const { t } = useWords()
  const shown = useAmount()
  const raised = cap.new_cap !== null && cap.new_cap !== cap.new_effective
  return (
    <div className="flex flex-col gap-1">
      <Meter
        small
        label={t(`adminPools.month.${meter}`)}
        meter={meter}
        amount={cap.new_effective}
        used={cap.used}
        held={cap.held}
        paused={paused}
      />
      {cap.cap !== cap.new_cap && (
        <span className="text-xs text-soft">
          {t('adminAllocations.caps.before', {
            cap: cap.cap === null ? t('meter.noCap') : shown(meter, cap.cap),
          })}
        </span>
      )}
      {raised && (
        <span className="text-xs text-soft">{t('adminAllocations.caps.withTopUps')}</span>
      )}
    </div>
  )
}
