/** A bootstrap password opens nothing but this: choosing another one. */
import { useQueryClient } from '@tanstack/react-query'

import { api, ok } from '@/api/client'
import { enter, sessionQuery } from '@/api/queries'
import { useWords } from '@/i18n'
import { Button } from '@/ui/button'

import { PasswordFields, usePasswordForm } from './password'
import { Outside } from './sign-in'

export default function NewPassword() {
  const { t } = useWords()
  const client = useQueryClient()
  const form = usePasswordForm(() => client.invalidateQueries(sessionQuery))
  return (
    <Outside title={t('password.mustChange')}>
      <p className="mb-4 text-soft">{t('password.mustChangeHint')}</p>
      <form onSubmit={form.submit} className="flex flex-col gap-4">
        <PasswordFields form={form} />
        <Button type="submit" look="main" busy={form.busy}>
          {t('password.change')}
        </Button>
        <Button
          look="quiet"
          onClick={async () => {
            await ok(api.POST('/api/auth/logout')).catch(() => {})
            enter(null)
          }}
        >
          {t('account.signOut')}
        </Button>
      </form>
    </Outside>
  )
}
