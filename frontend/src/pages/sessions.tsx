/** Live sessions: what runs at this moment and what it has cost so far; and stopping it. */
import { useQuery } from '@tanstack/react-query'
import { useEffect, useState } from 'react'

import { api, ok } from '@/api/client'
import { type RealtimeSession, mySessionsQuery, useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { formatDuration } from '@/lib/time'
import { Button } from '@/ui/button'
import { Confirm } from '@/ui/dialog'
import { Count, Money } from '@/ui/format'
import { ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty, Page } from '@/ui/page'
import { DataTable } from '@/ui/table'
import { toast } from '@/ui/toast'
import { useUnits } from '@/ui/units'

export default function Sessions() {
  const { t } = useWords()
  const units = useUnits()
  const refresh = useRefresh()
  const sessions = useQuery(mySessionsQuery)
  const [stopping, setStopping] = useState<RealtimeSession | null>(null)
  return (
    <Page title={t('nav.sessions')} about={t('sessions.about')}>
      <Answered of={sessions}>
        {(rows) => (
          <Card flush>
            {rows.length === 0 ? (
              <Empty icon="live" title={t('sessions.none')}>
                {t('sessions.noneHint')}
              </Empty>
            ) : (
              <DataTable
                caption={t('nav.sessions')}
                rows={rows}
                id={(row) => row.id}
                columns={[
                  { name: 'model', head: t('calls.model'), title: true, cell: (row) => row.model },
                  { name: 'allocation', head: t('calls.allocation'), cell: (row) => row.allocation_name ?? '–' },
                  { name: 'runs', head: t('sessions.runs'), cell: (row) => <Running since={row.started_at} /> },
                  { name: 'cost', head: t('sessions.cost'), end: true, cell: (row) => <Money usd={row.cost_usd} /> },
                  { name: 'held', head: t('sessions.held'), end: true, cell: (row) => <Money usd={row.cost_held} /> },
                  { name: 'tokens', head: t('calls.tokens'), end: true, cell: (row) => <Count value={row.tokens} /> },
                  {
                    name: 'units',
                    head: t('usage.units'),
                    wide: true,
                    optional: (row) => Object.keys(row.usage).length > 0,
                    cell: (row) => <span className="text-xs text-soft">{units(row.usage)}</span>,
                  },
                  {
                    name: 'stop',
                    head: '',
                    actions: true,
                    end: true,
                    cell: (row) =>
                      row.stopping ? (
                        <ToneBadge tone="idle" icon="clock" label={t('sessions.stopping')} />
                      ) : (
                        <Button look="danger" icon="stop" onClick={() => setStopping(row)}>
                          {t('sessions.stop')}
                        </Button>
                      ),
                  },
                ]}
              />
            )}
          </Card>
        )}
      </Answered>
      <Confirm
        open={stopping !== null}
        onClose={() => setStopping(null)}
        title={t('sessions.stopTitle')}
        action={t('sessions.stop')}
        onConfirm={async () => {
          const path = { id: stopping!.id }
          await ok(api.DELETE('/api/me/realtime-sessions/{id}', { params: { path } }))
          toast(t('sessions.stopped'))
          await refresh(['me', 'sessions'])
        }}
      >
        <p>{t('sessions.stopEffect')}</p>
      </Confirm>
    </Page>
  )
}

/** Counts on by itself between two looks at the server. */
function Running({ since }: { since: string }) {
  const [now, setNow] = useState(Date.now)
  useEffect(() => {
    const ticking = setInterval(() => setNow(Date.now()), 1000)
    return () => clearInterval(ticking)
  }, [])
  const seconds = Math.max(0, Math.floor((now - Date.parse(since)) / 1000))
  return <span className="tabular-nums">{formatDuration(seconds)}</span>
}
