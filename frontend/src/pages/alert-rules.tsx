/** Rules: thresholds on what owners use, and who is told. */
import { zodResolver } from '@hookform/resolvers/zod'
import { useQuery } from '@tanstack/react-query'
import { useState } from 'react'
import * as z from 'zod/mini'

import {
  type Destination,
  type Rule,
  allocationsQuery,
  keysQuery,
  membersQuery,
  poolNamesQuery,
  rulesQuery,
} from '@/api/admin-setup'
import { api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { readWindow } from '@/lib/limits'
import { formatCount, readCount, readUsd } from '@/lib/money'
import { Button, IconButton } from '@/ui/button'
import { Confirm, Dialog } from '@/ui/dialog'
import { CheckField, SelectField, TextField } from '@/ui/field'
import { useAmount } from '@/ui/format'
import { useLimitName } from '@/ui/limit-name'
import { Answered, Card, Empty } from '@/ui/page'
import { DataTable } from '@/ui/table'
import { toast } from '@/ui/toast'

import { Enabled } from './alert-destinations'
import { EditorForm, differing, useEditor, useMayWrite } from './setup-parts'

interface Owner {
  kind: Rule['owner']
  id: string
  name: string
}

/** Whatever a rule can be on, by name. */
function useOwners(): Owner[] {
  const allocations = useQuery(allocationsQuery())
  const pools = useQuery(poolNamesQuery)
  const keys = useQuery(keysQuery())
  const members = useQuery(membersQuery)
  const emailOf = (id: string) => members.data?.find((one) => one.id === id)?.email ?? ''
  return [
    ...(allocations.data ?? []).map(
      (one): Owner => ({ kind: 'allocation', id: one.id, name: `${one.name} · ${emailOf(one.member_id)}` }),
    ),
    ...(pools.data ?? []).map((one): Owner => ({ kind: 'pool', id: one.id, name: one.name })),
    ...(keys.data ?? [])
      .filter((one) => one.revoked_at === null)
      .map((one): Owner => ({ kind: 'key', id: one.id, name: `${one.name} · ${emailOf(one.member_id)}` })),
  ]
}

export function Rules({ destinations }: { destinations: Destination[] }) {
  const { t, locale } = useWords()
  const writes = useMayWrite()
  const refresh = useRefresh()
  const amount = useAmount()
  const limitName = useLimitName()
  const rules = useQuery(rulesQuery)
  const owners = useOwners()
  const [edited, setEdited] = useState<Rule | 'new' | null>(null)
  const [removing, setRemoving] = useState<Rule | null>(null)
  const close = () => setEdited(null)
  const nameOf = (rule: Rule) => owners.find((one) => one.id === rule.owner_id)?.name ?? rule.owner_id
  const told = (rule: Rule) => destinations.find((one) => one.id === rule.destination_id)
  const add = writes && destinations.length > 0 && (
    <Button icon="plus" onClick={() => setEdited('new')}>
      {t('adminAlerts.addRule')}
    </Button>
  )
  return (
    <Card title={t('adminAlerts.rules')} flush actions={Boolean(rules.data?.length) && add}>
      <Answered of={rules}>
        {(rows) =>
          rows.length === 0 ? (
            <Empty icon="warning" title={t('adminAlerts.noRules')} actions={add}>
              {destinations.length ? t('adminAlerts.noRulesHint') : t('adminAlerts.destinationFirst')}
            </Empty>
          ) : (
            <DataTable
              caption={t('adminAlerts.rules')}
              rows={rows}
              id={(row) => row.id}
              columns={[
                { name: 'owner', head: t('adminAlerts.owner'), title: true, cell: (row) => nameOf(row) },
                {
                  name: 'total',
                  head: t('adminAlerts.total'),
                  cell: (row) => limitName({ owner: row.owner, meter: row.meter, window: row.window }),
                },
                {
                  name: 'threshold',
                  head: t('adminAlerts.threshold'),
                  end: true,
                  cell: (row) =>
                    row.percent !== null
                      ? t('adminAlerts.percentOf', { percent: formatCount(row.percent, locale) })
                      : amount(row.meter, row.threshold!),
                },
                { name: 'told', head: t('adminAlerts.tells'), cell: (row) => told(row)?.name ?? row.destination_id },
                { name: 'state', head: t('adminMembers.status'), cell: (row) => <Enabled enabled={row.enabled} /> },
                {
                  name: 'actions',
                  head: '',
                  actions: true,
                  end: true,
                  cell: (row) =>
                    told(row)?.key_id ? (
                      <span className="text-xs text-soft">{t('adminAlerts.onKey')}</span>
                    ) : (
                      writes && (
                        <span className="flex gap-1 md:justify-end">
                          <IconButton
                            icon="edit"
                            label={t('adminSetup.editOf', { name: nameOf(row) })}
                            onClick={() => setEdited(row)}
                          />
                          <IconButton
                            icon="trash"
                            label={t('adminSetup.removeOf', { name: nameOf(row) })}
                            onClick={() => setRemoving(row)}
                          />
                        </span>
                      )
                    ),
                },
              ]}
            />
          )
        }
      </Answered>
      <Dialog
        open={edited !== null}
        onClose={close}
        title={edited === 'new' ? t('adminAlerts.addRule') : t('adminAlerts.editRule')}
        about={edited && edited !== 'new' ? `${nameOf(edited)} · ${limitName({ owner: edited.owner, meter: edited.meter, window: edited.window })}` : t('adminAlerts.ruleAbout')}
      >
        {edited && (
          <RuleForm
            {...(edited === 'new' ? {} : { rule: edited })}
            destinations={destinations.filter((one) => one.key_id === null)}
            owners={owners}
            onClose={close}
          />
        )}
      </Dialog>
      <Confirm
        open={removing !== null}
        onClose={() => setRemoving(null)}
        title={t('adminAlerts.removeRuleTitle')}
        action={t('adminSetup.remove')}
        onConfirm={async () => {
          await ok(api.DELETE('/api/admin/alert-rules/{id}', { params: { path: { id: removing!.id } } }))
          toast(t('adminSetup.removed'))
          await refresh(['admin', 'rules'])
        }}
      >
        <p>{removing && t('adminAlerts.removeRuleEffect', { owner: nameOf(removing) })}</p>
      </Confirm>
    </Card>
  )
}

const readPercent = (text: string) => {
  const bare = text.trim().replace(/\s*%$/, '')
  return /^\d{1,4}(\.\d{1,2})?$/.test(bare) && Number(bare) > 0 && Number(bare) <= 1000 ? bare : null
}

const readThreshold = (meter: 'usd' | 'tokens', text: string) => {
  const read = meter === 'usd' ? readUsd(text) : readCount(text)
  return read === null || Number(read) === 0 ? null : String(read)
}

const WINDOWS = ['month', 'day', 'hour', 'lifetime', 'rolling'] as const

const shape = z
  .object({
    destination_id: z.string().check(z.minLength(1, 'required')),
    owner: z.enum(['allocation', 'pool', 'key']),
    owner_id: z.string().check(z.minLength(1, 'required')),
    meter: z.enum(['usd', 'tokens']),
    window: z.enum(WINDOWS),
    hours: z.string(),
    by: z.enum(['percent', 'threshold']),
    value: z.string(),
    enabled: z.boolean(),
  })
  .check(
    z.refine(({ by, value }) => by !== 'percent' || readPercent(value) !== null, {
      path: ['value'],
      error: 'percent',
    }),
    z.refine(({ by, meter, value }) => by === 'percent' || readThreshold(meter, value) !== null, {
      path: ['value'],
      error: 'amount',
    }),
    z.refine(({ window, hours }) => window !== 'rolling' || /^[1-9]\d{0,3}$/.test(hours), {
      path: ['hours'],
      error: 'hours',
    }),
  )

type Fields = z.infer<typeof shape>

function RuleForm({
  rule,
  destinations,
  owners,
  onClose,
}: {
  rule?: Rule
  destinations: Destination[]
  owners: Owner[]
  onClose: () => void
}) {
  const { t } = useWords()
  const refresh = useRefresh()
  const window = readWindow(rule?.window ?? 'month')
  const editor = useEditor<Fields>({
    resolver: zodResolver(shape),
    start: {
      destination_id: rule?.destination_id ?? destinations[0]?.id ?? '',
      owner: rule?.owner ?? 'allocation',
      owner_id: rule?.owner_id ?? '',
      meter: rule?.meter ?? 'usd',
      window: window.name,
      hours: String(window.hours ?? 24),
      by: rule && rule.percent === null ? 'threshold' : 'percent',
      value: String(rule?.percent ?? rule?.threshold ?? 80),
      enabled: rule?.enabled ?? true,
    },
    save: async (given) => {
      const said = {
        destination_id: given.destination_id,
        threshold: given.by === 'threshold' ? readThreshold(given.meter, given.value) : null,
        percent: given.by === 'percent' ? readPercent(given.value) : null,
        enabled: given.enabled,
      }
      if (rule) {
        const before = {
          destination_id: rule.destination_id,
          threshold: rule.threshold === null ? null : String(rule.threshold),
          percent: rule.percent === null ? null : String(rule.percent),
          enabled: rule.enabled,
        }
        const { threshold, percent, ...rest } = differing(before, said)
        const value = threshold !== undefined || percent !== undefined
        await ok(
          api.PATCH('/api/admin/alert-rules/{id}', {
            params: { path: { id: rule.id } },
            body: { ...rest, ...(value ? { threshold: said.threshold, percent: said.percent } : {}) },
          }),
        )
      } else {
        await ok(
          api.POST('/api/admin/alert-rules', {
            body: {
              ...said,
              owner: given.owner,
              owner_id: given.owner_id,
              meter: given.meter,
              window: given.window === 'rolling' ? `rolling:${given.hours}h` : given.window,
            },
          }),
        )
      }
      await refresh(['admin', 'rules'])
      toast(t('adminAlerts.ruleSaved'))
      onClose()
    },
  })
  const { form, tied } = editor
  const [owner, by, meter, chosen] = form.watch(['owner', 'by', 'meter', 'window'])
  const picked = owners.filter((one) => one.kind === owner)
  return (
    <EditorForm editor={editor} action={rule ? t('common.save') : t('adminAlerts.addRule')} onClose={onClose}>
      {!rule && (
        <div className="grid gap-4 sm:grid-cols-2">
          <SelectField
            label={t('adminAlerts.ownerKind')}
            {...tied('owner')}
            onChange={(event) => {
              void form.register('owner').onChange(event)
              form.setValue('owner_id', '')
              if (event.target.value !== 'key' && form.getValues('window') === 'rolling') form.setValue('window', 'month')
            }}
          >
            {(['allocation', 'pool', 'key'] as const).map((one) => (
              <option key={one} value={one}>
                {t(`limits.owners.${one}`)}
              </option>
            ))}
          </SelectField>
          <SelectField
            label={t('adminAlerts.owner')}
            hint={picked.length === 0 ? t('adminAlerts.noOwners') : undefined}
            {...tied('owner_id')}
          >
            <option value="">{t('adminSetup.choose')}</option>
            {picked.map((one) => (
              <option key={one.id} value={one.id}>
                {one.name}
              </option>
            ))}
          </SelectField>
          <SelectField label={t('adminAlerts.meter')} {...tied('meter')}>
            {(['usd', 'tokens'] as const).map((one) => (
              <option key={one} value={one}>
                {t(`meters.${one}`)}
              </option>
            ))}
          </SelectField>
          <SelectField label={t('adminAlerts.window')} {...tied('window')}>
            {WINDOWS.filter((one) => one !== 'rolling' || owner === 'key').map((one) => (
              <option key={one} value={one}>
                {t(`adminAlerts.windows.${one}`)}
              </option>
            ))}
          </SelectField>
          {chosen === 'rolling' && (
            <TextField label={t('adminAlerts.hours')} inputMode="numeric" {...tied('hours', 'window')} />
          )}
        </div>
      )}
      <div className="grid gap-4 sm:grid-cols-2">
        <SelectField label={t('adminAlerts.by')} {...tied('by')}>
          {(['percent', 'threshold'] as const).map((one) => (
            <option key={one} value={one}>
              {t(`adminAlerts.bys.${one}`)}
            </option>
          ))}
        </SelectField>
        <TextField
          label={by === 'percent' ? t('adminAlerts.percent') : t(`meters.${meter}`)}
          inputMode="decimal"
          autoComplete="off"
          hint={by === 'percent' ? t('adminAlerts.percentHint') : t(`ask.amountHint.${meter}`)}
          {...tied('value', by)}
        />
        <SelectField label={t('adminAlerts.tells')} className="sm:col-span-2" {...tied('destination_id')}>
          {destinations.map((one) => (
            <option key={one.id} value={one.id}>
              {one.name} · {one.address}
            </option>
          ))}
        </SelectField>
      </div>
      <CheckField label={t('adminAlerts.enabled')} {...form.register('enabled')} />
    </EditorForm>
  )
}
