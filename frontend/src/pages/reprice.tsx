/** Calls priced again by the versions in force when they began: first what it would book, then that. */
import { zodResolver } from '@hookform/resolvers/zod'
import { useQuery } from '@tanstack/react-query'
import { useState } from 'react'
import * as z from 'zod/mini'

import { type Repricing, allocationsQuery } from '@/api/admin-setup'
import { api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { Button } from '@/ui/button'
import { Confirm } from '@/ui/dialog'
import { TextField } from '@/ui/field'
import { Count, Money, When, useAmount } from '@/ui/format'
import { Card, Problem } from '@/ui/page'
import { DataTable } from '@/ui/table'
import { toast } from '@/ui/toast'

import { Facts, useEditor, useMayWrite } from './setup-parts'

const shape = z
  .object({
    from: z.string(),
    to: z.string(),
    reason: z.string().check(z.trim(), z.minLength(1, 'reason')),
  })
  .check(
    z.refine((given) => !given.from || !given.to || given.from < given.to, {
      path: ['to'],
      error: 'later',
    }),
  )

type Fields = z.infer<typeof shape>

export function Reprice({ slug, unpriced }: { slug: string; unpriced: number }) {
  const { t } = useWords()
  const writes = useMayWrite()
  const refresh = useRefresh()
  const amount = useAmount()
  const [seen, setSeen] = useState<{ given: Fields; found: Repricing } | null>(null)
  const [asking, setAsking] = useState(false)
  const run = ({ from, to, reason }: Fields, dry_run: boolean) =>
    ok(
      api.POST('/api/admin/repricing', {
        body: { model: slug, reason, from: from || null, to: to || null, dry_run },
      }),
    )
  const editor = useEditor<Fields>({
    resolver: zodResolver(shape),
    start: { from: '', to: '', reason: '' },
    save: async (given) => setSeen({ given, found: await run(given, true) }),
  })
  const { tied, form } = editor
  // What was looked at is what is booked: another span or reason is to be looked at again.
  const [from, to, reason] = form.watch(['from', 'to', 'reason'])
  const given = { from, to, reason: reason.trim() }
  const current = seen && (seen.found.dry_run ? JSON.stringify(seen.given) === JSON.stringify(given) : true)
  if (!writes) return null
  return (
    <Card title={t('adminPrices.reprice')}>
      <form noValidate onSubmit={(event) => void editor.submit(event)} className="flex flex-col gap-4">
        <p className="max-w-prose text-soft">
          {unpriced > 0 && `${t('adminPrices.unpricedOf', { count: unpriced })} `}
          {t('adminPrices.repriceHint')}
        </p>
        {editor.error ? <Problem error={editor.error} /> : null}
        <div className="grid gap-4 sm:grid-cols-2 lg:grid-cols-4">
          <TextField label={t('adminSetup.from')} type="date" hint={t('adminPrices.fromHint')} {...tied('from')} />
          <TextField label={t('adminSetup.to')} type="date" hint={t('adminPrices.toHint')} {...tied('to')} />
          <TextField
            label={t('adminSetup.reason')}
            maxLength={1000}
            className="sm:col-span-2"
            hint={t('adminPrices.reasonHint')}
            {...tied('reason')}
          />
        </div>
        <div>
          <Button type="submit" busy={editor.busy}>
            {t('adminPrices.preview')}
          </Button>
        </div>
      </form>
      {seen && current && (
        <div role="status" className="mt-4 flex flex-col gap-3">
          <Found found={seen.found} />
          {seen.found.dry_run && seen.found.calls_changed > 0 && (
            <div>
              <Button look="main" onClick={() => setAsking(true)}>
                {t('adminPrices.book', { difference: signed(seen.found.difference_usd, amount) })}
              </Button>
            </div>
          )}
          <Confirm
            open={asking}
            onClose={() => setAsking(false)}
            title={t('adminPrices.bookTitle')}
            look="main"
            action={t('adminPrices.bookAction')}
            onConfirm={async () => {
              const found = await run(seen.given, false)
              setSeen({ given: seen.given, found })
              toast(t('adminPrices.booked', { count: found.calls_changed }))
              await refresh(['admin'])
            }}
          >
            <p>
              {t('adminPrices.bookEffect', {
                count: seen.found.calls_changed,
                difference: signed(seen.found.difference_usd, amount),
              })}
            </p>
            <p className="text-soft">{t('adminPrices.bookStays')}</p>
          </Confirm>
        </div>
      )}
    </Card>
  )
}

const signed = (usd: string, amount: (meter: string, value: string) => string) =>
  usd.startsWith('-') ? `−${amount('usd', usd.slice(1))}` : `+${amount('usd', usd)}`

function Found({ found }: { found: Repricing }) {
  const { t } = useWords()
  const allocations = useQuery({ ...allocationsQuery(), enabled: found.allocations.length > 0 })
  const nameOf = (id: string | null) =>
    allocations.data?.find((one) => one.id === id)?.name ?? id ?? t('adminSetup.none')
  return (
    <section
      aria-label={t('adminPrices.result')}
      className="flex flex-col gap-3 rounded-lg border border-line p-4"
    >
      <p className="font-semibold">
        {!found.dry_run
          ? t('adminPrices.booked', { count: found.calls_changed })
          : found.calls_changed > 0
            ? t('adminPrices.wouldBook')
            : t('adminPrices.nothingToBook')}
      </p>
      <Facts>
        <dt>{t('adminPrices.span')}</dt>
        <dd>
          <When at={found.from} /> – <When at={found.to} />
        </dd>
        <dt>{t('adminPrices.callsSeen')}</dt>
        <dd>
          <Count value={found.calls} />
        </dd>
        <dt>{t('adminPrices.callsChanged')}</dt>
        <dd>
          <Count value={found.calls_changed} />
        </dd>
        <dt>{t('adminPrices.difference')}</dt>
        <dd>
          <Money usd={found.difference_usd} />
        </dd>
        {found.still_unpriced > 0 && (
          <>
            <dt>{t('adminPrices.stillUnpriced')}</dt>
            <dd>
              <Count value={found.still_unpriced} />
              <span className="text-soft"> · {t('adminPrices.stillUnpricedHint')}</span>
            </dd>
          </>
        )}
        {found.usage_unknown > 0 && (
          <>
            <dt>{t('adminPrices.usageUnknown')}</dt>
            <dd>
              <Count value={found.usage_unknown} />
            </dd>
          </>
        )}
      </Facts>
      {found.allocations.length > 0 && (
        <div className="overflow-hidden rounded-lg border border-line">
          <DataTable
            caption={t('adminPrices.byAllocation')}
            rows={found.allocations}
            id={(row) => row.allocation_id ?? ''}
            columns={[
              { name: 'allocation', head: t('adminMembers.allocation'), title: true, cell: (row) => nameOf(row.allocation_id) },
              { name: 'calls', head: t('adminPrices.callsChanged'), end: true, cell: (row) => <Count value={row.calls_changed} /> },
              { name: 'usd', head: t('adminPrices.difference'), end: true, cell: (row) => <Money usd={row.difference_usd} /> },
            ]}
          />
        </div>
      )}
    </section>
  )
}
