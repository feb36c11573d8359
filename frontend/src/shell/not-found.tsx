/** Where an address leads nowhere. */
import { useWords } from '@/i18n'
import { LinkButton } from '@/ui/button'
import { Card, Empty, Page } from '@/ui/page'

export function NotFound() {
  const { t } = useWords()
  return (
    <Page title={t('notFound.title')}>
      <Card>
        <Empty
          icon="search"
          title={t('notFound.nothing')}
          actions={<LinkButton to="/">{t('notFound.home')}</LinkButton>}
        />
      </Card>
    </Page>
  )
}
