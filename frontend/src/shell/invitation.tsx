/**
 * Outside as well: whoever has the link of an invitation chooses a password, and is signed in.
 *
 * The secret is what comes after the `#`: it is sent in bodies only, to the two calls that are
 * about it, and is gone from the address once it is spent.
 */
import { zodResolver } from '@hookform/resolvers/zod'
import { useMutation, useQuery } from '@tanstack/react-query'
import { useLocation, useNavigate } from '@tanstack/react-router'
import type { ReactNode } from 'react'
import { useForm } from 'react-hook-form'
import * as z from 'zod/mini'

import { ApiError, api, ok, type Schemas } from '@/api/client'
import { enter, sessionQuery } from '@/api/queries'
import { useWords } from '@/i18n'
import { fieldError } from '@/i18n/errors'
import { Button, LinkButton } from '@/ui/button'
import { TextField } from '@/ui/field'
import { When } from '@/ui/format'
import { Loading, Problem } from '@/ui/page'

import { FRESH, FreshPassword, alike } from './password'
import { Outside } from './sign-in'

/** What the server says of every link that cannot be used. */
const GONE = 410

export default function Invitation() {
  const { t } = useWords()
  const token = useLocation().hash
  const invitation = useQuery({
    queryKey: ['invitation', token],
    queryFn: () => ok(api.POST('/api/auth/invitation', { body: { token } })),
    // Half a link is not worth a question: each that is none counts as a guess.
    enabled: token !== '',
    staleTime: Infinity,
    refetchInterval: false,
  })
  if (invitation.data !== undefined) {
    return <Choose key={token} token={token} invitation={invitation.data} />
  }
  const error = token === '' ? new ApiError(GONE, null) : invitation.error
  if (error) {
    return (
      <Refused error={error}>
        {(title, said) => (
          <Outside title={title}>
            <div role="alert">{said}</div>
            <div className="mt-4 flex flex-col gap-2">
              {error instanceof ApiError && error.status === GONE ? (
                <LinkButton look="main" to="/">
                  {t('auth.title')}
                </LinkButton>
              ) : (
                <Button icon="rotate" onClick={() => void invitation.refetch()}>
                  {t('common.retry')}
                </Button>
              )}
            </div>
          </Outside>
        )}
      </Refused>
    )
  }
  return (
    <Outside title={t('invitation.title')}>
      <Loading />
    </Outside>
  )
}

/** What was refused, in words that say what to do next. */
function Refused({
  error,
  children,
}: {
  error: Error
  children: (title: string, said: ReactNode) => ReactNode
}) {
  const { t } = useWords()
  if (error instanceof ApiError) {
    if (error.status === GONE) return children(t('invitation.goneTitle'), t('invitation.gone'))
    if (error.status === 403) return children(t('invitation.goneTitle'), t('auth.disabled'))
    if (error.status === 429) {
      const count = Math.max(1, Math.ceil((error.retryAfter ?? 60) / 60))
      return children(t('invitation.goneTitle'), t('auth.locked', { count }))
    }
  }
  return children(t('invitation.title'), <Problem error={error} />)
}

const shape = z.object({ name: z.string().check(z.trim()), ...FRESH }).check(alike)

type Fields = z.infer<typeof shape>

function Choose({ token, invitation }: { token: string; invitation: Schemas['OpenInvitation'] }) {
  const { t } = useWords()
  const navigate = useNavigate()
  const other = useQuery(sessionQuery).data?.member.email
  const joins = invitation.purpose === 'join'
  const form = useForm<Fields>({
    resolver: zodResolver(shape),
    defaultValues: { name: invitation.display_name, fresh: '', again: '' },
  })
  const accept = useMutation({
    mutationFn: ({ name, fresh }: Fields) =>
      ok(
        api.POST('/api/auth/invitation/accept', {
          body: { token, password: fresh, ...(joins ? { display_name: name } : {}) },
        }),
      ),
    onSuccess: async (session) => {
      await navigate({ to: '/', replace: true })
      enter(session)
    },
  })
  const submit = form.handleSubmit((fields) => accept.mutateAsync(fields).catch(() => {}))
  const { errors } = form.formState
  const refused = fieldError(accept.error, 'password') !== undefined
  const who = invitation.invited_by ?? t('invitation.admin')
  return (
    <Outside title={joins ? t('invitation.title') : t('password.mustChange')}>
      <div className="mb-4 flex flex-col gap-2">
        <p className="wrap-anywhere">{joins ? t('invitation.join', { who }) : t('invitation.reset', { who })}</p>
        {joins && (
          <p>
            {t('invitation.role')} <strong className="font-semibold">{t(`roles.${invitation.role}`)}</strong>
          </p>
        )}
        <p className="text-soft">
          {t('invitation.until')} <When at={invitation.expires_at} utc />
        </p>
        {other !== undefined && other !== invitation.email && (
          <p className="rounded-lg bg-near-wash px-3 py-2 wrap-anywhere text-near-ink">
            {t('invitation.instead', { other })}
          </p>
        )}
      </div>
      <form noValidate onSubmit={(event) => void submit(event)} className="flex flex-col gap-4">
        {accept.error && !refused && (
          <Refused error={accept.error}>
            {(_, said) => (
              <div role="alert" className="rounded-lg bg-bad-wash px-3 py-2 font-medium text-bad-ink">
                {said}
              </div>
            )}
          </Refused>
        )}
        <TextField
          label={t('auth.email')}
          type="email"
          autoComplete="username"
          readOnly
          value={invitation.email}
        />
        {joins && (
          <TextField
            label={t('invitation.name')}
            hint={t('invitation.nameHint')}
            autoComplete="name"
            maxLength={200}
            error={fieldError(accept.error, 'display_name')}
            {...form.register('name')}
          />
        )}
        <FreshPassword errors={errors} refused={refused} register={(name) => form.register(name)} />
        <Button type="submit" look="main" busy={accept.isPending}>
          {t('invitation.accept')}
        </Button>
      </form>
    </Outside>
  )
}
