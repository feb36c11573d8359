/** The form of an allocation: a new one, or what is configured of one that there is. */
import { useMutation, useQuery } from '@tanstack/react-query'
import { type FormEvent, useState } from 'react'

import {
  type AllocationRow,
  SPEND,
  membersQuery,
  modelSlugsQuery,
  poolsQuery,
} from '@/api/admin-spend'
import { api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { fieldError } from '@/i18n/errors'
import { readCap } from '@/lib/caps'
import { readCount } from '@/lib/money'
import { Button } from '@/ui/button'
import { Dialog, DialogActions } from '@/ui/dialog'
import { CheckField, SelectField, TextArea, TextField } from '@/ui/field'
import { Problem } from '@/ui/page'
import { toast } from '@/ui/toast'

interface Props {
  /** The one that is changed; without it, one is added. */
  row?: AllocationRow
  onClose: () => void
}

export function AllocationDialog({ row, onClose }: Props) {
  const { t } = useWords()
  return (
    <Dialog
      open
      wide
      onClose={onClose}
      title={row ? t('adminAllocations.editOf', { name: row.name }) : t('adminAllocations.add')}
      about={row ? t('adminAllocations.editAbout') : t('adminAllocations.addAbout')}
    >
      <AllocationForm {...(row ? { row } : {})} onClose={onClose} />
    </Dialog>
  )
}

function AllocationForm({ row, onClose }: Props) {
  const { t } = useWords()
  const refresh = useRefresh()
  const members = useQuery(membersQuery)
  const pools = useQuery(poolsQuery)
  const [given, setGiven] = useState({
    member_id: row?.member_id ?? '',
    name: row?.name ?? '',
    models: row?.models ?? [],
    pool_id: row?.pool_id ?? '',
    usd: '',
    tokens: '',
    overrun_policy: row?.overrun_policy ?? 'strict',
    ledger_outage: row?.ledger_outage ?? 'deny',
    unpriced: row?.unpriced ?? 'allow',
    billing_timezone: row?.billing_timezone ?? '',
    floor_tokens: String(row?.floor_tokens ?? 0),
    locked: row?.locked ?? false,
    service: row?.service ?? false,
    reason: '',
  })
  const [tried, setTried] = useState(false)
  type Given = typeof given
  const text = (name: keyof Given) => ({
    value: String(given[name]),
    onChange: (event: { target: { value: string } }) =>
      setGiven((before) => ({ ...before, [name]: event.target.value })),
  })
  const check = (name: 'locked' | 'service') => ({
    checked: given[name],
    onChange: (event: { target: { checked: boolean } }) =>
      setGiven((before) => ({ ...before, [name]: event.target.checked })),
  })
  const floor = readCount(given.floor_tokens || '0')
  const wrong: Partial<Record<keyof Given, string>> = {
    ...(given.member_id ? {} : { member_id: t('adminAllocations.errors.member') }),
    ...(given.models.length ? {} : { models: t('adminAllocations.errors.models') }),
    ...(row && !given.name.trim() ? { name: t('adminAllocations.errors.name') } : {}),
    ...(readCap('usd', given.usd) === undefined ? { usd: t('adminAllocations.errors.cap') } : {}),
    ...(readCap('tokens', given.tokens) === undefined
      ? { tokens: t('adminAllocations.errors.cap') }
      : {}),
    ...(floor === null ? { floor_tokens: t('adminAllocations.errors.floor') } : {}),
  }
  const save = useMutation({
    mutationFn: () => {
      const both = {
        models: given.models,
        pool_id: given.pool_id || null,
        overrun_policy: given.overrun_policy,
        ledger_outage: given.ledger_outage,
        unpriced: given.unpriced,
        billing_timezone: given.billing_timezone.trim() || null,
        floor_tokens: floor!,
        locked: given.locked,
        service: given.service,
        reason: given.reason.trim() || null,
      }
      if (row) {
        return ok(
          api.PATCH('/api/admin/allocations/{id}', {
            params: { path: { id: row.id } },
            body: { ...both, name: given.name },
          }),
        )
      }
      return ok(
        api.POST('/api/admin/allocations', {
          body: {
            ...both,
            member_id: given.member_id,
            name: given.name.trim() || null,
            quota_cost_usd_per_month: readCap('usd', given.usd) as string | null,
            quota_tokens_per_month: readCap('tokens', given.tokens) as number | null,
          },
        }),
      )
    },
    onSuccess: async (saved) => {
      await refresh(SPEND)
      toast(t(row ? 'adminAllocations.saved' : 'adminAllocations.added', { name: saved.name }))
      onClose()
    },
  })
  const error = (name: keyof Given, field: string = name) =>
    (tried ? wrong[name] : undefined) ?? fieldError(save.error, field)
  const submit = (event: FormEvent) => {
    event.preventDefault()
    setTried(true)
    if (Object.keys(wrong).length === 0) save.mutate()
  }
  return (
    <form onSubmit={submit} className="flex flex-col gap-4" noValidate>
      {save.error && <Problem error={save.error} />}
      <div className="grid gap-4 sm:grid-cols-2">
        <SelectField
          label={t('adminAllocations.member')}
          disabled={row !== undefined}
          error={error('member_id')}
          {...text('member_id')}
        >
          <option value="">{t('adminAllocations.chooseMember')}</option>
          {members.data?.map((one) => (
            <option key={one.id} value={one.id}>
              {one.display_name} · {one.email}
            </option>
          ))}
        </SelectField>
        <TextField
          label={t('adminAllocations.name')}
          hint={row ? undefined : t('adminAllocations.nameHint')}
          maxLength={200}
          autoComplete="off"
          error={error('name')}
          {...text('name')}
        />
      </div>
      <Models
        chosen={given.models}
        onChange={(models) => setGiven((before) => ({ ...before, models }))}
        error={error('models')}
      />
      <div className="grid gap-4 sm:grid-cols-2">
        {!row && (
          <>
            <TextField
              label={t('adminAllocations.caps.usd')}
              hint={t('adminAllocations.caps.hint')}
              inputMode="decimal"
              autoComplete="off"
              error={error('usd', 'quota_cost_usd_per_month')}
              {...text('usd')}
            />
            <TextField
              label={t('adminAllocations.caps.tokens')}
              hint={t('adminAllocations.caps.hint')}
              autoComplete="off"
              error={error('tokens', 'quota_tokens_per_month')}
              {...text('tokens')}
            />
          </>
        )}
        <SelectField
          label={t('adminAllocations.pool')}
          hint={t('adminAllocations.poolHint')}
          error={error('pool_id')}
          {...text('pool_id')}
        >
          <option value="">{t('adminAllocations.noPool')}</option>
          {pools.data?.map((one) => (
            <option key={one.id} value={one.id}>
              {one.name}
            </option>
          ))}
        </SelectField>
        <SelectField
          label={t('adminAllocations.unpriced')}
          hint={t(`adminAllocations.unpricedHint.${given.unpriced}`)}
          {...text('unpriced')}
        >
          {(['allow', 'deny'] as const).map((one) => (
            <option key={one} value={one}>
              {t(`adminAllocations.policies.${one}`)}
            </option>
          ))}
        </SelectField>
      </div>
      <details className="group rounded-lg border border-line px-3 py-2">
        <summary className="py-1 font-medium">{t('adminAllocations.more')}</summary>
        <div className="grid gap-4 pt-3 pb-1 sm:grid-cols-2">
          <SelectField
            label={t('adminAllocations.overrun')}
            hint={t(`adminAllocations.overrunHint.${given.overrun_policy}`)}
            {...text('overrun_policy')}
          >
            {(['strict', 'last_call'] as const).map((one) => (
              <option key={one} value={one}>
                {t(`adminAllocations.overruns.${one}`)}
              </option>
            ))}
          </SelectField>
          <SelectField
            label={t('adminAllocations.outage')}
            hint={t(`adminAllocations.outageHint.${given.ledger_outage}`)}
            {...text('ledger_outage')}
          >
            {(['deny', 'allow'] as const).map((one) => (
              <option key={one} value={one}>
                {t(`adminAllocations.policies.${one}`)}
              </option>
            ))}
          </SelectField>
          <TextField
            label={t('adminAllocations.timezone')}
            hint={t('adminAllocations.timezoneHint')}
            list="timezones"
            autoComplete="off"
            error={error('billing_timezone')}
            {...text('billing_timezone')}
          />
          <datalist id="timezones">
            {Intl.supportedValuesOf('timeZone').map((zone) => (
              <option key={zone} value={zone} />
            ))}
          </datalist>
          <TextField
            label={t('adminAllocations.floor')}
            hint={t('adminAllocations.floorHint')}
            autoComplete="off"
            error={error('floor_tokens')}
            {...text('floor_tokens')}
          />
          <CheckField
            label={t('adminAllocations.locked')}
            hint={t('adminAllocations.lockedHint')}
            {...check('locked')}
          />
          <CheckField
            label={t('adminAllocations.service')}
            hint={t('adminAllocations.serviceHint')}
            {...check('service')}
          />
        </div>
      </details>
      <TextArea
        label={t('adminAllocations.reason')}
        hint={t('adminAllocations.reasonHint')}
        maxLength={500}
        rows={2}
        error={error('reason')}
        {...text('reason')}
      />
      <DialogActions>
        <Button onClick={onClose}>{t('common.cancel')}</Button>
        <Button type="submit" look="main" busy={save.isPending}>
          {row ? t('common.save') : t('adminAllocations.add')}
        </Button>
      </DialogActions>
    </form>
  )
}

const MANY = 8

function Models({
  chosen,
  onChange,
  error,
}: {
  chosen: string[]
  onChange: (models: string[]) => void
  error: string | undefined
}) {
  const { t } = useWords()
  const models = useQuery(modelSlugsQuery)
  const [q, setQ] = useState('')
  const slugs = [...new Set([...(models.data ?? []), ...chosen])].sort()
  const found = slugs.filter(
    (slug) => slug.toLowerCase().includes(q.trim().toLowerCase()) || chosen.includes(slug),
  )
  return (
    <fieldset className="flex min-w-0 flex-col gap-1.5">
      <legend className="mb-1 font-medium">
        {t('adminAllocations.models')}{' '}
        <span className="font-normal text-soft">
          {t('adminAllocations.modelsChosen', { count: chosen.length })}
        </span>
      </legend>
      {slugs.length > MANY && (
        <TextField
          label={t('adminAllocations.findModel')}
          hiddenLabel
          type="search"
          placeholder={t('adminAllocations.findModel')}
          value={q}
          onChange={(event) => setQ(event.target.value)}
        />
      )}
      <div
        role="group"
        tabIndex={-1}
        aria-label={t('adminAllocations.models')}
        className="grid max-h-44 gap-x-4 overflow-y-auto rounded-lg border border-line px-3 py-1.5 sm:grid-cols-2"
      >
        {found.map((slug) => (
          <label key={slug} className="flex min-w-0 items-center gap-2 py-1">
            <input
              type="checkbox"
              className="size-4 flex-none accent-(--accent)"
              checked={chosen.includes(slug)}
              onChange={(event) =>
                onChange(
                  event.target.checked
                    ? [...chosen, slug]
                    : chosen.filter((one) => one !== slug),
                )
              }
            />
            <span className="font-mono text-xs">{slug}</span>
          </label>
        ))}
        {models.data?.length === 0 && (
          <p className="py-1 text-soft">{t('adminAllocations.noModels')}</p>
        )}
      </div>
      {error && <p className="text-xs font-medium text-bad-ink">{error}</p>}
    </fieldset>
  )
}
