/** Where an address leads nowhere, or not for whoever came. */
import { useWords } from '@/i18n'
import { LinkButton } from '@/ui/button'
import { Card, Empty, Page } from '@/ui/page'

export function NotFound({ forbidden = false }: { forbidden?: boolean }) {
  const { t } = useWords()
  return (
    <Page title={t(forbidden ? 'notFound.forbidden' : 'notFound.title')}>
      <Card>
        <Empty
          icon={forbidden ? 'stop' : 'search'}
          title={t(forbidden ? 'notFound.adminsOnly' : 'notFound.nothing')}
          actions={<LinkButton to="/">{t('notFound.home')}</LinkButton>}
        />
      </Card>
    </Page>
  )
}
