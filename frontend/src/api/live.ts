/**
 * Live: how what is on the page stays current. The one place that knows.
 *
 * A query that shows what calls change names its topics in `meta: { live: [...] }`; nothing else is
 * asked of a page. The server says on a stream of events that something has changed, never what it
 * is now: the queries of that topic are asked again. While there is no stream, they are asked every
 * few seconds.
 */
import type { Query, QueryClient } from '@tanstack/react-query'
import { useEffect } from 'react'

/** What changes by itself: standings and limits, booked calls, running sessions, requests. */
export type Topic = 'standing' | 'calls' | 'sessions' | 'requests' | 'alerts'

/** The server's events, and what may look different after each. */
const EVENTS: Record<string, readonly Topic[]> = {
  // A session that was recovered after a crash is told of as its allocation only.
  allocation: ['standing', 'calls', 'sessions'],
  session: ['sessions'],
  request: ['requests', 'standing'],
  key: ['standing'],
  overview: ['standing', 'calls', 'sessions', 'requests', 'alerts'],
}

const WITHOUT_STREAM_MS = 5_000
/** Also with a stream: what nobody tells of, such as deliveries, and what a period's end resets. */
const WITH_STREAM_MS = 30_000
const AT_MOST_EVERY_MS = 300

declare module '@tanstack/react-query' {
  interface Register {
    queryMeta: { live?: readonly Topic[] }
  }
}

let streaming = false

/** How often a query is asked again by itself. */
export function refetchInterval(query: Pick<Query, 'meta'>): number | false {
  if (!query.meta?.live?.length) return false
  return streaming ? WITH_STREAM_MS : WITHOUT_STREAM_MS
}

/** Listen for as long as the component is there: for as long as somebody is signed in. */
export function useLive(client: QueryClient): void {
  useEffect(() => {
    const changed = new Set<Topic>()
    let timer: ReturnType<typeof setTimeout> | undefined
    const flush = () => {
      timer = undefined
      const topics = new Set(changed)
      changed.clear()
      void client.invalidateQueries({
        predicate: (query) => (query.meta?.live ?? []).some((topic) => topics.has(topic)),
      })
    }
    const note = (topics: readonly Topic[]) => {
      for (const topic of topics) changed.add(topic)
      timer ??= setTimeout(flush, AT_MOST_EVERY_MS)
    }
    const stream = new EventSource('/api/events')
    stream.onopen = () => {
      streaming = true
      // What happened before is not told.
      note(EVENTS.overview!)
    }
    stream.onerror = () => {
      streaming = false
      // It opens itself again; a stream that was refused is closed for good, and pages go on asking.
      note(EVENTS.overview!)
    }
    // A network that goes or comes says nothing to a stream that is quiet.
    const look = () => note(EVENTS.overview!)
    addEventListener('offline', look)
    addEventListener('online', look)
    for (const [event, topics] of Object.entries(EVENTS)) {
      stream.addEventListener(event, () => note(topics))
    }
    return () => {
      streaming = false
      clearTimeout(timer)
      removeEventListener('offline', look)
      removeEventListener('online', look)
      stream.close()
    }
  }, [client])
}
