/** How to use a key: a call to paste, for a model that it opens and a client of one's choice. */
import { useQuery } from '@tanstack/react-query'
import { useState } from 'react'

import { type Key, type Standing, myModelsQuery } from '@/api/queries'
import { useWords } from '@/i18n'
import { type Client, clientsOf, endpointOf, snippet } from '@/lib/snippets'
import { Snippet } from '@/ui/copy'
import { SelectField } from '@/ui/field'
import { Answered } from '@/ui/page'

const NAMES: Record<Client, string> = {
  curl: 'curl',
  'openai-python': 'Python (openai)',
  'openai-js': 'JavaScript (openai)',
  mistralai: 'Python (mistralai)',
}

/** Where there is no secret to fill in: it was shown once. */
const PLACEHOLDER = 'YOUR_KEY'

export function Snippets({
  of: key,
  allocations,
  secret = PLACEHOLDER,
}: {
  of: Key
  allocations: Standing[]
  secret?: string
}) {
  const { t } = useWords()
  const models = useQuery(myModelsQuery)
  const [slug, setSlug] = useState<string | null>(null)
  const [client, setClient] = useState<Client>('curl')
  const opened = new Set(
    allocations
      .filter((one) => key.allocation_ids.includes(one.id))
      .flatMap((one) => one.models),
  )
  return (
    <Answered of={models}>
      {(all) => {
        const usable = all.filter((one) => opened.has(one.slug))
        const model = usable.find((one) => one.slug === slug) ??
          usable.find((one) => endpointOf(one) === 'chat/completions' && one.units.length > 0) ??
          usable[0]
        if (model === undefined) return <p className="text-soft">{t('snippets.none')}</p>
        const endpoint = endpointOf(model)
        const clients = clientsOf(endpoint)
        const chosen = clients.includes(client) ? client : clients[0]!
        const target = { root: window.location.origin, key: secret, model: model.slug, endpoint }
        return (
          <div className="flex min-w-0 flex-col gap-3">
            <div className="grid gap-3 sm:grid-cols-2">
              <SelectField
                label={t('calls.model')}
                value={model.slug}
                onChange={(event) => setSlug(event.target.value)}
              >
                {usable.map((one) => (
                  <option key={one.slug}>{one.slug}</option>
                ))}
              </SelectField>
              <SelectField
                label={t('snippets.client')}
                value={chosen}
                onChange={(event) => setClient(event.target.value as Client)}
              >
                {clients.map((one) => (
                  <option key={one} value={one}>
                    {NAMES[one]}
                  </option>
                ))}
              </SelectField>
            </div>
            <Snippet code={snippet(chosen, target)} label={t('snippets.label')} />
          </div>
        )
      }}
    </Answered>
  )
}
