/** Deliveries: what was told to whom, each try, and telling it again. */
import { useInfiniteQuery, useMutation, useQuery } from '@tanstack/react-query'
import { useState } from 'react'

import { type Delivery, type Destination, deliveriesQuery, deliveryQuery } from '@/api/admin-setup'
import { api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { formatCount } from '@/lib/money'
import { Button } from '@/ui/button'
import { Dialog, DialogActions } from '@/ui/dialog'
import { Choice, Filters, More } from '@/ui/filters'
import { When } from '@/ui/format'
import type { IconName } from '@/ui/icons'
import { type Tone, ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty, Problem } from '@/ui/page'
import { DataTable } from '@/ui/table'
import { toast } from '@/ui/toast'

import { useAsked, useMayWrite } from './setup-parts'

const LOOKS: Record<Delivery['status'], [Tone, IconName]> = {
  pending: ['idle', 'clock'],
  delivered: ['good', 'check'],
  dead: ['bad', 'stop'],
}

const STATUSES = ['pending', 'delivered', 'dead'] as const

const KINDS = new Set([
  'token_threshold_crossed',
  'cost_threshold_crossed',
  'allocation_exhausted',
  'realtime_session_cut',
  'request_raised',
  'unpriced_model_seen',
  'test',
])

function useEventName() {
  const { t } = useWords()
  return (event: string) => (KINDS.has(event) ? t(`adminAlerts.events.${event}`) : event)
}

export function Deliveries({ destinations }: { destinations: Destination[] }) {
  const { t } = useWords()
  const { asked, ask } = useAsked('/admin/alerts')
  const eventName = useEventName()
  const [opened, setOpened] = useState<string | null>(null)
  const filters = { destination_id: asked.to || undefined, status: asked.status || undefined }
  const deliveries = useInfiniteQuery(deliveriesQuery(filters))
  const filtered = Object.values(filters).some(Boolean)
  const nameOf = (id: string) => destinations.find((one) => one.id === id)?.name ?? id
  return (
    <Card title={t('adminAlerts.deliveries')} flush>
      <Filters framed>
        <Choice
          label={t('adminMembers.status')}
          value={asked.status}
          onChange={(value) => ask({ status: value })}
          options={STATUSES.map((one) => [one, t(`adminAlerts.statuses.${one}`)] as const)}
        />
        <Choice
          label={t('adminAlerts.destination')}
          value={asked.to}
          onChange={(value) => ask({ to: value })}
          options={destinations.map((one) => [one.id, one.name] as const)}
        />
      </Filters>
      <Answered of={deliveries}>
        {({ pages }) => {
          const rows = pages.flatMap((page) => page.items)
          if (rows.length === 0) {
            return filtered ? (
              <Empty icon="search" title={t('adminSetup.nothingFound')} />
            ) : (
              <Empty icon="inbox" title={t('adminAlerts.noDeliveries')}>
                {t('adminAlerts.noDeliveriesHint')}
              </Empty>
            )
          }
          return (
            <>
              <DataTable
                caption={t('adminAlerts.deliveries')}
                rows={rows}
                id={(row) => row.id}
                columns={[
                  { name: 'event', head: t('adminAlerts.event'), title: true, cell: (row) => eventName(row.event) },
                  { name: 'to', head: t('adminAlerts.destination'), cell: (row) => nameOf(row.destination_id) },
                  { name: 'status', head: t('adminMembers.status'), cell: (row) => <Status delivery={row} /> },
                  { name: 'tries', head: t('adminAlerts.tries'), end: true, cell: (row) => row.attempt_count },
                  { name: 'at', head: t('adminAlerts.at'), cell: (row) => <When at={row.created_at} /> },
                  {
                    name: 'open',
                    head: '',
                    actions: true,
                    end: true,
                    cell: (row) => (
                      <Button
                        aria-label={t('adminAlerts.detailsOf', { event: eventName(row.event), name: nameOf(row.destination_id) })}
                        onClick={() => setOpened(row.id)}
                      >
                        {t('adminAlerts.details')}
                      </Button>
                    ),
                  },
                ]}
              />
              <More of={deliveries} />
            </>
          )
        }}
      </Answered>
      <Dialog wide open={opened !== null} onClose={() => setOpened(null)} title={t('adminAlerts.delivery')}>
        {opened && <Details id={opened} nameOf={nameOf} />}
      </Dialog>
    </Card>
  )
}

function Status({ delivery }: { delivery: Delivery }) {
  const { t } = useWords()
  const [tone, icon] = LOOKS[delivery.status]
  return (
    <>
      <ToneBadge tone={tone} icon={icon} label={t(`adminAlerts.statuses.${delivery.status}`)} />
      {delivery.next_at && (
        <span className="block text-xs text-soft">
          {t('adminAlerts.next')} <When at={delivery.next_at} relative />
        </span>
      )}
    </>
  )
}

function Details({ id, nameOf }: { id: string; nameOf: (id: string) => string }) {
  const { t, locale } = useWords()
  const writes = useMayWrite()
  const refresh = useRefresh()
  const eventName = useEventName()
  const delivery = useQuery(deliveryQuery(id))
  const again = useMutation({
    mutationFn: () => ok(api.POST('/api/admin/deliveries/{id}/redeliver', { params: { path: { id } } })),
    onSuccess: () => {
      toast(t('adminAlerts.redelivered'))
      return refresh(['admin', 'deliveries'])
    },
  })
  return (
    <Answered of={delivery}>
      {(shown) => (
        <div className="flex flex-col gap-4">
          <p className="flex flex-wrap items-center gap-2">
            <strong className="font-semibold">{eventName(shown.event)}</strong>
            <span className="text-soft">→ {nameOf(shown.destination_id)}</span>
            <Status delivery={shown} />
          </p>
          <div className="overflow-hidden rounded-lg border border-line">
            {shown.attempts.length === 0 ? (
              <p className="p-4 text-soft">{t('adminAlerts.noTries')}</p>
            ) : (
              <DataTable
                caption={t('adminAlerts.tries')}
                rows={shown.attempts}
                id={(row) => row.at}
                columns={[
                  { name: 'at', head: t('adminAlerts.tried'), title: true, cell: (row) => <When at={row.at} /> },
                  { name: 'code', head: t('adminAlerts.answer'), cell: (row) => row.status_code ?? t('adminAlerts.noAnswer') },
                  { name: 'error', head: t('adminAlerts.error'), cell: (row) => row.error ?? '', optional: (row) => row.error !== null },
                  {
                    name: 'took',
                    head: t('adminAlerts.took'),
                    end: true,
                    cell: (row) => `${formatCount(row.duration_ms, locale)} ms`,
                  },
                ]}
              />
            )}
          </div>
          <section aria-label={t('adminAlerts.body')}>
            <h3 className="mb-1 font-medium">{t('adminAlerts.body')}</h3>
            <pre
              tabIndex={0}
              aria-label={t('adminAlerts.body')}
              className="rounded-lg border border-line bg-sunk p-3 font-mono text-xs whitespace-pre-wrap"
            >
              {JSON.stringify(shown.body, null, 2)}
            </pre>
          </section>
          {again.error && <Problem error={again.error} />}
          {writes && (
            <DialogActions>
              <Button icon="rotate" busy={again.isPending} onClick={() => again.mutate()}>
                {t('adminAlerts.redeliver')}
              </Button>
            </DialogActions>
          )}
        </div>
      )}
    </Answered>
  )
}
