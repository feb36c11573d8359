/** Limits, named as people name them: `Pool “Lab”: USD a month`. */
import { useWords } from '@/i18n'
import { readWindow } from '@/lib/limits'

interface Limit {
  owner?: string
  meter: string
  window: string
}

export function useLimitName() {
  const { t } = useWords()
  return ({ owner, meter, window }: Limit, name?: string) => {
    const { name: kind, hours } = readWindow(window)
    const what = t(`limits.${meter}.${kind}`, { hours })
    if (owner === undefined) return what
    const whose = t(`limits.owners.${owner}`)
    return name ? t('limits.named', { whose, name, what }) : t('limits.of', { whose, what })
  }
}
