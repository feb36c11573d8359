/** Toasts: short news of what was done, said aloud as well, gone after a while. */
import { useSyncExternalStore } from 'react'

import { Icon } from './icons'

interface Toast {
  id: number
  text: string
}

const LASTS_MS = 5_000

let shown: readonly Toast[] = []
let last = 0
const listeners = new Set<() => void>()

function set(next: readonly Toast[]) {
  shown = next
  for (const listener of listeners) listener()
}

/** Tells that something was done. What went wrong stays where it happened instead: `<Problem>`. */
export function toast(text: string): void {
  const id = ++last
  set([...shown, { id, text }])
  setTimeout(() => set(shown.filter((one) => one.id !== id)), LASTS_MS)
}

export function Toasts() {
  const toasts = useSyncExternalStore(
    (listener) => {
      listeners.add(listener)
      return () => listeners.delete(listener)
    },
    () => shown,
  )
  return (
    <div
      role="status"
      className="pointer-events-none fixed inset-x-3 bottom-4 z-60 flex flex-col items-center gap-2"
    >
      {toasts.map((one) => (
        <div
          key={one.id}
          className="animate-appear flex max-w-full items-center gap-2 rounded-xl bg-ink px-4 py-2.5 font-medium text-paper shadow-card"
        >
          <Icon name="check" />
          {one.text}
        </div>
      ))}
    </div>
  )
}
