/** Who a member is to identity providers: what they sign in with beside a password. */
import { useQuery } from '@tanstack/react-query'
import { useState } from 'react'

import { identitiesQuery } from '@/api/admin-setup'
import { api, ok } from '@/api/client'
import { useRefresh } from '@/api/queries'
import { useWords } from '@/i18n'
import { Button } from '@/ui/button'
import { Confirm } from '@/ui/dialog'
import { When } from '@/ui/format'
import { Answered } from '@/ui/page'
import { toast } from '@/ui/toast'

import { useMayWrite } from './setup-parts'

export function MemberIdentities({ memberId }: { memberId: string }) {
  const { t } = useWords()
  const writes = useMayWrite()
  const refresh = useRefresh()
  const identities = useQuery(identitiesQuery(memberId))
  const [removing, setRemoving] = useState<string | null>(null)
  const removed = identities.data?.find((one) => one.id === removing)
  return (
    <>
      <Answered of={identities}>
        {(rows) =>
          rows.length === 0 ? (
            <span className="text-soft">{t('adminSetup.none')}</span>
          ) : (
            <ul className="flex flex-col gap-2">
              {rows.map((one) => (
                <li key={one.id} className="flex flex-wrap items-center gap-x-3 gap-y-1">
                  <span className="wrap-anywhere">
                    {one.name} <code className="font-mono text-xs text-soft">{one.subject}</code>
                  </span>
                  <span className="text-soft">
                    <When at={one.created_at} />
                  </span>
                  {writes && (
                    <Button
                      look="danger"
                      aria-label={t('adminMembers.unlinkOf', { name: one.name })}
                      onClick={() => setRemoving(one.id)}
                    >
                      {t('adminMembers.unlink')}
                    </Button>
                  )}
                </li>
              ))}
            </ul>
          )
        }
      </Answered>
      <Confirm
        open={removing !== null}
        onClose={() => setRemoving(null)}
        title={t('adminMembers.unlinkTitle', { name: removed?.name })}
        action={t('adminMembers.unlink')}
        onConfirm={async () => {
          const path = { id: memberId, identity_id: removing! }
          await ok(api.DELETE('/api/admin/members/{id}/identities/{identity_id}', { params: { path } }))
          toast(t('adminMembers.unlinked'))
          await refresh(['admin', 'identities'])
        }}
      >
        <p>{t('adminMembers.unlinkEffect')}</p>
        <p className="text-soft">{t('adminMembers.unlinkAgain')}</p>
      </Confirm>
    </>
  )
}
