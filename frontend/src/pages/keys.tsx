/** Keys: what opens one's allocations; made, tightened, rotated and revoked here. */
import { useQuery } from '@tanstack/react-query'
import { Suspense, lazy, useState } from 'react'

import { api, ok } from '@/api/client'
import {
  type Key,
  type KeyWithSecret,
  type Standing,
  myAllocationsQuery,
  myKeysQuery,
  useRefresh,
} from '@/api/queries'
import { useWords } from '@/i18n'
import { Button, LinkButton } from '@/ui/button'
import { CopyButton } from '@/ui/copy'
import { Confirm, Dialog, DialogActions } from '@/ui/dialog'
import { When } from '@/ui/format'
import { useLimitName } from '@/ui/limit-name'
import { Meter, ToneBadge } from '@/ui/meter'
import { Answered, Card, Empty, Loading, Page } from '@/ui/page'
import { toast } from '@/ui/toast'

import { Snippets } from './snippets'

const KeyForm = lazy(() => import('./key-form'))

type Doing = 'use' | 'tighten' | 'rotate' | 'revoke'

export default function Keys() {
  const { t } = useWords()
  const keys = useQuery(myKeysQuery)
  const allocations = useQuery(myAllocationsQuery)
  const [creating, setCreating] = useState(false)
  const [secret, setSecret] = useState<KeyWithSecret | null>(null)
  const [doing, setDoing] = useState<{ what: Doing; key: Key } | null>(null)
  const owned = allocations.data ?? []
  const create = (
    <Button icon="plus" look="main" onClick={() => setCreating(true)} disabled={!owned.length}>
      {t('keys.create')}
    </Button>
  )
  const done = () => setDoing(null)
  return (
    <Page title={t('nav.keys')} about={t('keys.about')} actions={create}>
      <Answered of={keys}>
        {(items) => {
          const active = items.filter((one) => one.revoked_at === null)
          const revoked = items.filter((one) => one.revoked_at !== null)
          return (
            <>
              {active.length === 0 ? (
                <Card>
                  <Empty icon="key" title={t('keys.none')}>
                    {t('keys.noneHint')}
                  </Empty>
                </Card>
              ) : (
                <ul className={`grid gap-4 ${active.length > 1 ? 'xl:grid-cols-2' : 'max-w-3xl'}`}>
                  {active.map((one) => (
                    <li key={one.id} className="flex min-w-0">
                      <KeyCard
                        of={one}
                        allocations={owned}
                        onDo={(what) => setDoing({ what, key: one })}
                      />
                    </li>
                  ))}
                </ul>
              )}
              {revoked.length > 0 && (
                <details className="rounded-xl border border-line bg-card px-4 py-3">
                  <summary className="font-medium">
                    {t('keys.revokedKeys', { count: revoked.length })}
                  </summary>
                  <ul className="mt-2 flex flex-col gap-1 text-soft">
                    {revoked.map((one) => (
                      <li key={one.id} className="flex flex-wrap gap-x-3">
                        <span>{one.name}</span>
                        <code className="font-mono text-xs">{one.hint}</code>
                        <span>
                          {t('keys.revokedAt')} <When at={one.revoked_at!} />
                        </span>
                      </li>
                    ))}
                  </ul>
                </details>
              )}
            </>
          )
        }}
      </Answered>
      <Dialog open={creating} onClose={() => setCreating(false)} title={t('keys.createTitle')}>
        <Suspense fallback={<Loading />}>
          <KeyForm allocations={owned} onClose={() => setCreating(false)} onCreated={setSecret} />
        </Suspense>
      </Dialog>
      <Dialog
        wide
        open={secret !== null}
        onClose={() => setSecret(null)}
        title={t('keys.secretTitle')}
        about={t('keys.secretHint')}
      >
        {secret && (
          <div className="flex flex-col gap-5">
            <div className="flex flex-wrap items-center gap-2">
              <code
                data-testid="secret"
                className="min-w-0 flex-1 rounded-lg border border-line bg-sunk px-3 py-2 font-mono text-xs break-all"
              >
                {secret.key}
              </code>
              <CopyButton text={secret.key} label={t('keys.copy')} />
            </div>
            <Snippets of={secret} allocations={owned} secret={secret.key} />
            <DialogActions>
              <Button look="main" onClick={() => setSecret(null)}>
                {t('keys.kept')}
              </Button>
            </DialogActions>
          </div>
        )}
      </Dialog>
      <Dialog
        wide
        open={doing?.what === 'use'}
        onClose={done}
        title={t('keys.useTitle', { name: doing?.key.name })}
        about={t('keys.useHint')}
      >
        {doing && <Snippets of={doing.key} allocations={owned} />}
      </Dialog>
      <Dialog
        open={doing?.what === 'tighten'}
        onClose={done}
        title={t('keys.tightenTitle', { name: doing?.key.name })}
      >
        <Suspense fallback={<Loading />}>
          {doing && <KeyForm of={doing.key} allocations={owned} onClose={done} />}
        </Suspense>
      </Dialog>
      <Ask doing={doing} onClose={done} onSecret={setSecret} />
    </Page>
  )
}

/** What cannot be taken back is asked for first. */
function Ask({
  doing,
  onClose,
  onSecret,
}: {
  doing: { what: Doing; key: Key } | null
  onClose: () => void
  onSecret: (key: KeyWithSecret) => void
}) {
  const { t } = useWords()
  const refresh = useRefresh()
  const path = { id: doing?.key.id ?? '' }
  const name = doing?.key.name
  return (
    <>
      <Confirm
        open={doing?.what === 'rotate'}
        onClose={onClose}
        title={t('keys.rotateTitle', { name })}
        action={t('keys.rotate')}
        onConfirm={async () => {
          onSecret(await ok(api.POST('/api/me/keys/{id}/rotate', { params: { path } })))
          await refresh(['me', 'keys'])
        }}
      >
        <p>{t('keys.rotateEffect')}</p>
      </Confirm>
      <Confirm
        open={doing?.what === 'revoke'}
        onClose={onClose}
        title={t('keys.revokeTitle', { name })}
        action={t('keys.revoke')}
        onConfirm={async () => {
          await ok(api.DELETE('/api/me/keys/{id}', { params: { path } }))
          toast(t('keys.revokedNow'))
          await refresh(['me', 'keys'])
        }}
      >
        <p>{t('keys.revokeEffect')}</p>
      </Confirm>
    </>
  )
}

function KeyCard({
  of: key,
  allocations,
  onDo,
}: {
  of: Key
  allocations: Standing[]
  onDo: (what: Doing) => void
}) {
  const { t } = useWords()
  const limitName = useLimitName()
  const expired = key.expires_at !== null && Date.parse(key.expires_at) <= Date.now()
  const opened = allocations.filter((one) => key.allocation_ids.includes(one.id))
  return (
    <article
      aria-label={key.name}
      className="flex w-full min-w-0 flex-col overflow-hidden rounded-xl border border-line bg-card shadow-card"
    >
      <header className="flex flex-wrap items-center gap-x-3 gap-y-1 px-4 pt-3.5">
        <h2 className="min-w-0 text-base font-semibold">{key.name}</h2>
        <code className="rounded bg-sunk px-1.5 py-0.5 font-mono text-xs">{key.hint}</code>
        <span className="ml-auto flex gap-1.5">
          {key.one_shot && (
            <ToneBadge
              tone={key.used_at ? 'idle' : 'good'}
              icon="dot"
              label={key.used_at ? t('keys.oneShotUsed') : t('keys.oneShotShort')}
            />
          )}
          {expired ? (
            <ToneBadge tone="bad" icon="clock" label={t('keys.expired')} />
          ) : (
            !key.used_at && !key.one_shot && <ToneBadge tone="good" icon="check" label={t('keys.active')} />
          )}
        </span>
      </header>
      <div className="flex flex-1 flex-col gap-3 px-4 py-4">
        <dl className="grid grid-cols-[auto_1fr] gap-x-4 gap-y-1.5 [&>dt]:text-soft">
          <dt>{t('keys.scope')}</dt>
          <dd>{opened.map((one) => one.name).join(t('common.and')) || '–'}</dd>
          <dt>{t('keys.created')}</dt>
          <dd>
            <When at={key.created_at} />
          </dd>
          <dt>{t('keys.expires')}</dt>
          <dd>{key.expires_at ? <When at={key.expires_at} /> : t('keys.never')}</dd>
        </dl>
        {key.limits.length > 0 && (
          <ul className="flex flex-col gap-2.5 border-t border-line pt-3">
            {key.limits.map((limit) => (
              <li key={`${limit.meter} ${limit.window}`}>
                <Meter
                  small
                  label={limitName(limit)}
                  meter={limit.meter}
                  amount={limit.amount}
                  used={limit.used}
                  held={limit.held}
                />
              </li>
            ))}
          </ul>
        )}
      </div>
      <footer className="flex flex-wrap gap-2 border-t border-line px-4 py-3">
        <Button icon="code" onClick={() => onDo('use')}>
          {t('keys.use')}
        </Button>
        <LinkButton to="/calls" search={{ key_id: key.id }}>
          {t('nav.calls')}
        </LinkButton>
        <Button onClick={() => onDo('tighten')}>
          {t('keys.tighten')}
        </Button>
        <Button onClick={() => onDo('rotate')}>
          {t('keys.rotate')}
        </Button>
        <Button look="danger" onClick={() => onDo('revoke')}>
          {t('keys.revoke')}
        </Button>
      </footer>
    </article>
  )
}
