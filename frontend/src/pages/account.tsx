/** Account: who one is, one's password, and where one has signed in. */
import { useMutation, useQuery } from '@tanstack/react-query'
import { useState } from 'react'

import { api, ok } from '@/api/client'
import { signInsQuery, useRefresh, waysQuery } from '@/api/queries'
import { useWords } from '@/i18n'
import { useSession } from '@/shell/gate'
import { PasswordFields, usePasswordForm } from '@/shell/password'
import { Button } from '@/ui/button'
import { Confirm } from '@/ui/dialog'
import { When } from '@/ui/format'
import { ToneBadge } from '@/ui/meter'
import { Answered, Card, Page } from '@/ui/page'
import { DataTable } from '@/ui/table'
import { toast } from '@/ui/toast'

export default function Account() {
  const { t } = useWords()
  const { member } = useSession()
  return (
    <Page title={t('nav.account')} about={`${member.email} · ${t(`roles.${member.role}`)}`}>
      <SignIns />
      <Ways />
    </Page>
  )
}

/** Who has no password is not asked for it. */
function Ways() {
  const { t } = useWords()
  const ways = useQuery(waysQuery)
  const names = ways.data?.identities.map((one) => one.name).join(t('common.and'))
  return (
    <>
      {names && (
        <Card title={t('ways.title')}>
          <p>{t(ways.data?.has_password ? 'ways.both' : 'ways.alone', { name: names })}</p>
        </Card>
      )}
      {ways.data?.has_password === false ? null : <Password />}
    </>
  )
}

function Password() {
  const { t } = useWords()
  const refresh = useRefresh()
  const form = usePasswordForm(() => {
    toast(t('password.changed'))
    return refresh(['sign-ins'])
  })
  return (
    <Card title={t('password.title')}>
      <form onSubmit={form.submit} className="flex max-w-sm flex-col gap-4">
        <p className="text-soft">{t('password.effect')}</p>
        <PasswordFields form={form} />
        <div>
          <Button type="submit" look="main" busy={form.busy}>
            {t('password.change')}
          </Button>
        </div>
      </form>
    </Card>
  )
}

function SignIns() {
  const { t } = useWords()
  const refresh = useRefresh()
  const sessions = useQuery(signInsQuery)
  const [ending, setEnding] = useState<string | null>(null)
  const end = useMutation({
    mutationFn: (id: string) =>
      ok(api.DELETE('/api/auth/sessions/{id}', { params: { path: { id } } })),
    onSuccess: () => {
      toast(t('signIns.ended'))
      return refresh(['sign-ins'])
    },
  })
  return (
    <Card title={t('signIns.title')} flush>
      <Answered of={sessions}>
        {(rows) => (
          <DataTable
            caption={t('signIns.title')}
            rows={rows}
            id={(row) => row.id}
            columns={[
              {
                name: 'agent',
                head: t('signIns.browser'),
                title: true,
                cell: (row) => (
                  <span className="inline-flex flex-wrap items-center gap-2">
                    <span title={row.user_agent}>{browserOf(row.user_agent) ?? t('signIns.unknown')}</span>
                    {row.current && <ToneBadge tone="good" icon="check" label={t('signIns.current')} />}
                  </span>
                ),
              },
              { name: 'address', head: t('signIns.address'), cell: (row) => row.address },
              { name: 'seen', head: t('signIns.seen'), cell: (row) => <When at={row.last_seen_at} relative /> },
              { name: 'since', head: t('signIns.since'), cell: (row) => <When at={row.created_at} /> },
              {
                name: 'end',
                head: '',
                actions: true,
                end: true,
                cell: (row) =>
                  row.current ? null : (
                    <Button look="danger" onClick={() => setEnding(row.id)}>
                      {t('signIns.end')}
                    </Button>
                  ),
              },
            ]}
          />
        )}
      </Answered>
      <Confirm
        open={ending !== null}
        onClose={() => setEnding(null)}
        title={t('signIns.endTitle')}
        action={t('signIns.end')}
        onConfirm={() => end.mutateAsync(ending!)}
      >
        <p>{t('signIns.endEffect')}</p>
      </Confirm>
    </Card>
  )
}

/** `Firefox · Linux`, as far as it can be told. */
function browserOf(agent: string): string | null {
  const browser = /(Edg|Firefox|Chrome|Safari)[a-zA-Z]*\//.exec(agent)?.[1]?.replace('Edg', 'Edge')
  const system = /(Windows|Android|iPhone|iPad|Mac OS X|Linux)/.exec(agent)?.[1]
  return [browser, system?.replace('Mac OS X', 'macOS')].filter(Boolean).join(' · ') || null
}
