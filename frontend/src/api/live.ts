/**
 * Live: how what is on the page stays current. The one place that knows.
 *
 * A query that shows what calls change names its topics in `meta: { live: [...] }`; nothing else is
 * asked of a page. Until the server sends events, such queries are asked again every few seconds.
 */
import type { Query } from '@tanstack/react-query'

/** What changes by itself: standings and limits, booked calls, running sessions, requests. */
export type Topic = 'standing' | 'calls' | 'sessions' | 'requests' | 'alerts'

const EVERY_MS = 5_000

declare module '@tanstack/react-query' {
  interface Register {
    queryMeta: { live?: readonly Topic[] }
  }
}

/** How often a query is asked again by itself. */
export function refetchInterval(query: Pick<Query, 'meta'>): number | false {
  return query.meta?.live?.length ? EVERY_MS : false
}
