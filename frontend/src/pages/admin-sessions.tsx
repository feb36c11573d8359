/** Live sessions of everybody: what each costs so far, and ending one. */
import { useQuery } from '@tanstack/react-query'
import { useEffect, useState } from 'react'

import { sessionsQuery } from '@/api/admin-setup'
import { api, ok } from '@/api/client'
import { type RealtimeSession, useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { sumUsd } from '@/lib/money'
import { formatDuration } from '@/lib/time'
import { Button, TextLink } from '@/ui/button'
import { Confirm } from '@/ui/dialog'
import { Count, Money, When, useAmount } from '@/ui/format'
import { ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty, Page } from '@/ui/page'
import { DataTable } from '@/ui/table'
import { toast } from '@/ui/toast'

import { useMayWrite } from './setup-parts'

export default function AdminSessions() {
  const { t } = useWords()
  const amount = useAmount()
  const sessions = useQuery(sessionsQuery)
  const rows = sessions.data ?? []
  const total = sumUsd(rows.flatMap((row) => row.cost_usd ?? []))
  return (
    <Page title={t('nav.adminSessions')} about={t('adminSessions.about')}>
      <Card
        title={rows.length > 0 && t('adminSessions.running', { count: rows.length, total: amount('usd', total) })}
        flush
      >
        <Answered of={sessions}>
          {(running) =>
            running.length === 0 ? (
              <Empty icon="live" title={t('adminSessions.none')}>
                {t('adminSessions.noneHint')}
              </Empty>
            ) : (
              <Sessions rows={running} asOf={sessions.dataUpdatedAt} />
            )
          }
        </Answered>
      </Card>
    </Page>
  )
}

function Sessions({ rows, asOf }: { rows: RealtimeSession[]; asOf: number }) {
  const { t } = useWords()
  const writes = useMayWrite()
  const refresh = useRefresh()
  const amount = useAmount()
  const now = useSeconds()
  const [killing, setKilling] = useState<RealtimeSession | null>(null)
  return (
    <>
      <DataTable
        caption={t('nav.adminSessions')}
        rows={rows}
        id={(row) => row.id}
        columns={[
          {
            name: 'who',
            head: t('adminMembers.member'),
            title: true,
            cell: (row) => (
              <TextLink to="/admin/members" search={{ id: row.member_id }}>
                {row.member_email ?? row.member_id}
              </TextLink>
            ),
          },
          { name: 'allocation', head: t('adminMembers.allocation'), cell: (row) => row.allocation_name ?? row.allocation_id },
          { name: 'model', head: t('adminModels.model'), cell: (row) => <span className="font-mono text-xs">{row.model}</span> },
          { name: 'started', head: t('adminSessions.started'), cell: (row) => <When at={row.started_at} /> },
          {
            name: 'for',
            head: t('adminSessions.duration'),
            end: true,
            cell: (row) => (
              <span className="tabular-nums">
                {formatDuration(row.duration_s + Math.max(0, Math.floor((now - asOf) / 1000)))}
              </span>
            ),
          },
          { name: 'tokens', head: t('meters.tokens'), end: true, cell: (row) => <Count value={row.tokens} /> },
          {
            name: 'cost',
            head: t('adminSessions.cost'),
            end: true,
            cell: (row) => (
              <>
                <strong className="font-semibold">
                  <Money usd={row.cost_usd} />
                </strong>
                <span className="block text-xs text-soft">
                  {t('meter.held', { amount: amount('usd', row.cost_held) })}
                </span>
              </>
            ),
          },
          {
            name: 'kill',
            head: '',
            actions: true,
            end: true,
            cell: (row) =>
              row.stopping ? (
                <ToneBadge tone="idle" icon="stop" label={t('adminSessions.stopping')} />
              ) : (
                writes && (
                  <Button
                    look="danger"
                    icon="stop"
                    aria-label={t('adminSessions.killOf', { name: row.member_email ?? row.id })}
                    onClick={() => setKilling(row)}
                  >
                    {t('adminSessions.kill')}
                  </Button>
                )
              ),
          },
        ]}
      />
      <Confirm
        open={killing !== null}
        onClose={() => setKilling(null)}
        title={t('adminSessions.killTitle')}
        action={t('adminSessions.kill')}
        onConfirm={async () => {
          await ok(
            api.DELETE('/api/admin/realtime-sessions/{id}', { params: { path: { id: killing!.id } } }),
          )
          toast(t('adminSessions.killed'))
          await refresh(['admin', 'sessions'])
        }}
      >
        {killing && (
          <>
            <p>{t('adminSessions.killEffect', { name: killing.member_email ?? killing.member_id, model: killing.model })}</p>
            <p>
              {killing.cost_usd === null
                ? t('adminSessions.killUnpriced')
                : t('adminSessions.killCost', { cost: amount('usd', killing.cost_usd) })}
            </p>
          </>
        )}
      </Confirm>
    </>
  )
}

/** The time, once a second: durations go on between two answers. */
function useSeconds(): number {
  const [now, setNow] = useState(Date.now)
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1000)
    return () => clearInterval(timer)
  }, [])
  return now
}
