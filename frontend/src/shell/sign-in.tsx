/** Outside: signing in. */
import { useMutation } from '@tanstack/react-query'
import { type FormEvent, type ReactNode, useEffect, useRef, useState } from 'react'

import { ApiError, api, ok } from '@/api/client'
import { enter } from '@/api/queries'
import { LANGUAGES, type Language, speak, useWords } from '@/i18n'
import { Button } from '@/ui/button'
import { TextField } from '@/ui/field'
import { Logo } from '@/ui/icons'
import { Problem } from '@/ui/page'

import { ProviderRefusal, ProviderSignIn } from './provider-sign-in'

/** The frame around what is seen without a session. */
export function Outside({ title, children }: { title?: string; children: ReactNode }) {
  const { t, language } = useWords()
  useEffect(() => {
    document.title = title ? `${title} · Spendgate` : 'Spendgate'
  }, [title])
  return (
    <main className="mx-auto flex min-h-dvh w-full max-w-sm flex-col justify-center gap-5 px-4 py-10">
      <header className="flex items-center gap-3">
        <Logo className="size-11" />
        <div>
          <p className="text-xl leading-tight font-semibold tracking-tight">Spendgate</p>
          <p className="text-soft">{t('auth.promise')}</p>
        </div>
      </header>
      <div className="rounded-2xl border border-line bg-card p-5 shadow-card">
        {title && <h1 className="mb-4 text-lg font-semibold">{title}</h1>}
        {children}
      </div>
      <nav aria-label={t('account.language')} className="flex justify-center gap-1">
        {Object.entries(LANGUAGES).map(([code, name]) => (
          <button
            key={code}
            type="button"
            lang={code}
            aria-pressed={code === language}
            onClick={() => void speak(code as Language)}
            className="min-h-9 rounded-lg px-3 text-soft hover:text-ink aria-pressed:font-semibold aria-pressed:text-accent"
          >
            {name}
          </button>
        ))}
      </nav>
    </main>
  )
}

export function SignIn() {
  const { t } = useWords()
  const [email, setEmail] = useState('')
  const [password, setPassword] = useState('')
  const field = useRef<HTMLInputElement>(null)
  const signIn = useMutation({
    mutationFn: () => ok(api.POST('/api/auth/login', { body: { email, password } })),
    onSuccess: enter,
    onError: () => {
      setPassword('')
      field.current?.focus()
    },
  })
  const submit = (event: FormEvent) => {
    event.preventDefault()
    signIn.mutate()
  }
  return (
    <Outside title={t('auth.title')}>
      <form onSubmit={submit} className="flex flex-col gap-4">
        {signIn.error ? <SignInError error={signIn.error} /> : <ProviderRefusal />}
        <TextField
          label={t('auth.email')}
          type="email"
          autoComplete="username"
          required
          autoFocus
          value={email}
          onChange={(event) => setEmail(event.target.value)}
        />
        <TextField
          ref={field}
          label={t('auth.password')}
          type="password"
          autoComplete="current-password"
          required
          value={password}
          onChange={(event) => setPassword(event.target.value)}
        />
        <Button type="submit" look="main" busy={signIn.isPending}>
          {t('auth.signIn')}
        </Button>
        <p className="text-xs text-soft">{t('auth.forgot')}</p>
      </form>
      <ProviderSignIn />
    </Outside>
  )
}

/** Wrong passwords and lockouts have words of their own; the rest is as anywhere. */
function SignInError({ error }: { error: Error }) {
  const { t } = useWords()
  const known = error instanceof ApiError ? wordsOf(error) : null
  if (known === null) return <Problem error={error} />
  return (
    <p role="alert" className="rounded-lg bg-bad-wash px-3 py-2 font-medium text-bad-ink">
      {known}
    </p>
  )

  function wordsOf(refused: ApiError): string | null {
    if (refused.status === 401) return t('auth.wrong')
    if (refused.status === 403) return t('auth.disabled')
    if (refused.status === 422) return t('auth.noAddress')
    if (refused.status !== 429) return null
    return t('auth.locked', { count: Math.max(1, Math.ceil((refused.retryAfter ?? 60) / 60)) })
  }
}
