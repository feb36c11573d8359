/** Signing in with an identity provider: the way there, and what is said to who returns in vain. */
import { useQuery } from '@tanstack/react-query'
import { useEffect, useState } from 'react'

import { identityProviderQuery } from '@/api/queries'
import { useWords } from '@/i18n'
import { refusalIn } from '@/lib/refusal'
import { AwayButton } from '@/ui/button'

/** Leads there and, in the end, to the page that one is on. Nothing where there is no provider. */
export function ProviderSignIn() {
  const { t } = useWords()
  const name = useQuery(identityProviderQuery).data?.name
  if (!name) return null
  const { pathname, search } = window.location
  const next = new URLSearchParams({ next: pathname + search })
  return (
    <div className="mt-4 flex flex-col gap-4">
      <p className="flex items-center gap-3 text-soft before:h-px before:flex-1 before:bg-line after:h-px after:flex-1 after:bg-line">
        {t('auth.or')}
      </p>
      <AwayButton icon="user" href={`/api/auth/oidc/login?${next}`}>
        {t('auth.with', { name })}
      </AwayButton>
    </div>
  )
}

/** Why who comes back is not let in: read from the address once, and gone from there. */
export function ProviderRefusal() {
  const { t } = useWords()
  const [refusal] = useState(() => refusalIn(window.location.hash))
  useEffect(() => {
    if (refusal === null) return
    const { pathname, search } = window.location
    window.history.replaceState(window.history.state, '', pathname + search)
  }, [refusal])
  if (refusal === null) return null
  return (
    <div role="alert" className="rounded-lg bg-bad-wash px-3 py-2 text-bad-ink">
      <p className="font-medium">{t(`auth.refused.${refusal.why}`)}</p>
      {refusal.requestId && (
        <p className="mt-1 text-xs">
          {t('errors.requestId')} <code className="font-mono wrap-anywhere">{refusal.requestId}</code>
        </p>
      )}
    </div>
  )
}
