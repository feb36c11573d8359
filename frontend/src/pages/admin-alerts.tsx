/** Alerts: where they go, at which thresholds, and what became of each. */
import { useQuery } from '@tanstack/react-query'

import { destinationsQuery } from '@/api/admin-setup'
import { useWords } from '@/i18n'
import { Answered, Page } from '@/ui/page'

import { Deliveries } from './alert-deliveries'
import { Destinations } from './alert-destinations'
import { Rules } from './alert-rules'

export default function AdminAlerts() {
  const { t } = useWords()
  const destinations = useQuery(destinationsQuery)
  return (
    <Page title={t('nav.adminAlerts')} about={t('adminAlerts.about')}>
      <Answered of={destinations}>
        {(known) => (
          <>
            <Destinations destinations={known} />
            <Rules destinations={known} />
            <Deliveries destinations={known} />
          </>
        )}
      </Answered>
    </Page>
  )
}
