/** A test call to a provider: whether it answers, takes the credential, and knows a model. */
import { type Schemas, api, ok } from '@/api/client'
import { useWords } from '@/i18n'
import { faultWords } from '@/i18n/errors'
import { formatCount } from '@/lib/money'
import { Icon } from '@/ui/icons'
import { Problem } from '@/ui/page'

export type ProviderTestResult = Schemas['ProviderTestDocument']

export const testProvider = (id: string) =>
  ok(api.POST('/api/admin/providers/{id}/test', { params: { path: { id } }, body: {} }))

export function ProviderTest({ result, error }: { result: ProviderTestResult | undefined; error: unknown }) {
  const { t, language, locale } = useWords()
  if (result === undefined) return <Problem error={error} />
  const words = faultWords(result.code, result.values)
  const facts = [
    t('adminModels.took', { shown: formatCount(result.latency_ms, locale) }),
    result.status !== null && t('adminModels.status', { status: result.status }),
    result.models !== null && t('adminModels.listed', { count: result.models }),
  ].filter(Boolean)
  return (
    <div
      role="status"
      className={`flex items-start gap-2 rounded-lg px-3 py-2 ${result.ok ? 'bg-accent-wash text-accent-strong' : 'bg-bad-wash text-bad-ink'}`}
    >
      <Icon name={result.ok ? 'check' : 'warning'} className="mt-1" />
      <div className="min-w-0">
        <p className="font-medium">
          {result.ok ? t('adminModels.testOk') : t('adminModels.testFailed')}
          <span className="font-normal"> · {facts.join(' · ')}</span>
        </p>
        {!result.ok && (
          <p lang={words ? undefined : 'en'}>
            {words ?? (language === 'en' ? result.message : t('errors.said', { said: result.message }))}
          </p>
        )}
      </div>
    </div>
  )
}
