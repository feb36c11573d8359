/** Text that is meant to be copied. */
import { useState } from 'react'

import { useWords } from '@/i18n'

import { Button } from './button'

export function CopyButton({ text, label }: { text: string; label?: string }) {
  const { t } = useWords()
  const [copied, setCopied] = useState(false)
  return (
    <Button
      icon={copied ? 'check' : 'copy'}
      onClick={async () => {
        await copy(text)
        setCopied(true)
        setTimeout(() => setCopied(false), 2_000)
      }}
    >
      <span aria-live="polite">{copied ? t('common.copied') : (label ?? t('common.copy'))}</span>
    </Button>
  )
}

/** Browsers give the clipboard to secure pages only, and a gateway is often reached without TLS. */
async function copy(text: string): Promise<void> {
  if (navigator.clipboard) return navigator.clipboard.writeText(text)
  const area = document.createElement('textarea')
  area.value = text
  area.style.position = 'fixed'
  const host = document.querySelector('[role=dialog]') ?? document.body
  host.append(area)
  area.select()
  document.execCommand('copy')
  area.remove()
}

/** Something to paste somewhere, with a button that copies it. */
export function Snippet({ code, label }: { code: string; label: string }) {
  return (
    <div className="flex min-w-0 flex-col gap-2">
      <pre
        tabIndex={0}
        aria-label={label}
        className="overflow-x-auto rounded-lg border border-line bg-sunk p-3 font-mono text-xs leading-relaxed whitespace-pre-wrap"
      >
        {code}
      </pre>
      <div>
        <CopyButton text={code} />
      </div>
    </div>
  )
}
