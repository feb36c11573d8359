/** The fields with which one changes one's password. */
import { zodResolver } from '@hookform/resolvers/zod'
import { useMutation } from '@tanstack/react-query'
import { type UseFormRegisterReturn, useForm } from 'react-hook-form'
import * as z from 'zod/mini'

import { ApiError, api, ok } from '@/api/client'
import { fieldError } from '@/i18n/errors'
import { useWords } from '@/i18n'
import { TextField } from '@/ui/field'
import { Problem } from '@/ui/page'

export const PASSWORD_LENGTH_MIN = 8

/** A password to have from now on, written twice. */
export const FRESH = {
  fresh: z.string().check(z.minLength(PASSWORD_LENGTH_MIN, 'short')),
  again: z.string(),
}

export const alike = z.refine<{ fresh: string; again: string }>((given) => given.fresh === given.again, {
  path: ['again'],
  error: 'differs',
})

const shape = z.object({ current: z.string().check(z.minLength(1, 'required')), ...FRESH }).check(alike)

type Fields = z.infer<typeof shape>

export function usePasswordForm(onDone: () => unknown) {
  const form = useForm<Fields>({
    resolver: zodResolver(shape),
    defaultValues: { current: '', fresh: '', again: '' },
  })
  const change = useMutation({
    mutationFn: ({ current, fresh }: Fields) =>
      ok(
        api.POST('/api/auth/password', {
          body: { current_password: current, new_password: fresh },
        }),
      ),
    onSuccess: () => {
      form.reset()
      return onDone()
    },
  })
  return {
    form,
    error: change.error,
    busy: change.isPending,
    submit: form.handleSubmit((fields) => change.mutateAsync(fields).catch(() => {})),
  }
}

export function PasswordFields({ form: { form, error } }: { form: ReturnType<typeof usePasswordForm> }) {
  const { t } = useWords()
  const { errors } = form.formState
  const wrong = fieldError(error, 'current_password') !== undefined
  const same = error instanceof ApiError && fieldError(error, 'new_password') !== undefined
  return (
    <>
      {error && !wrong && !same && <Problem error={error} />}
      <TextField
        label={t('password.current')}
        type="password"
        autoComplete="current-password"
        error={errors.current ? t('password.errors.required') : wrong ? t('password.errors.wrong') : undefined}
        {...form.register('current')}
      />
      <FreshPassword errors={errors} refused={same} register={(name) => form.register(name)} />
    </>
  )
}

/** The fields of `FRESH`; `refused` says that the server does not take it. */
export function FreshPassword({
  errors,
  refused,
  register,
}: {
  errors: { [name in keyof typeof FRESH]?: { message?: string | undefined } | undefined }
  refused: boolean
  register: (name: keyof typeof FRESH) => UseFormRegisterReturn
}) {
  const { t } = useWords()
  const words = (name: keyof typeof FRESH) =>
    errors[name]?.message ? t(`password.errors.${errors[name].message}`) : undefined
  return (
    <>
      <TextField
        label={t('password.fresh')}
        type="password"
        autoComplete="new-password"
        hint={t('password.hint', { count: PASSWORD_LENGTH_MIN })}
        error={words('fresh') ?? (refused ? t('password.errors.refused') : undefined)}
        {...register('fresh')}
      />
      <TextField
        label={t('password.again')}
        type="password"
        autoComplete="new-password"
        error={words('again')}
        {...register('again')}
      />
    </>
  )
}
