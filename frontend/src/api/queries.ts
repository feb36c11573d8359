/** What pages read: each query has its name, its way to the server and its topics here. */
import {
  QueryClient,
  infiniteQueryOptions,
  queryOptions,
  useQueryClient,
} from '@tanstack/react-query'

import { ApiError, api, everything, ok, setCsrfToken, setOnSignedOut, type Schemas } from './client'
import { refetchInterval } from './live'

export type Session = Schemas['SignIn']
export type Role = Session['member']['role']
export type Standing = Schemas['Standing']
export type Call = Schemas['CallDocument']
export type Outcome = Call['outcome']
export type Key = Schemas['KeyView']
export type KeyWithSecret = Schemas['KeyWithSecret']
export type LimitStanding = Schemas['LimitStanding']
export type Request = Schemas['RequestDocument']
export type RealtimeSession = Schemas['SessionDocument']
export type OwnModel = Schemas['OwnModel']
export type UsageRow = Schemas['UsageRow']
export type Dimension = Schemas['UsageDocument']['group_by'][number]

const PAGE = 50
const LONG_PAGE = 500

export const queryClient = new QueryClient({
  defaultOptions: {
    queries: {
      staleTime: 2_000,
      // A gateway on this machine or network is reached without the internet as well.
      networkMode: 'always',
      refetchInterval,
      // What the server refused, it refuses again; what did not reach it may.
      retry: (failed, error) => failed < 2 && error instanceof ApiError && error.status === 0,
      retryDelay: 500,
    },
    mutations: { networkMode: 'always' },
  },
})

// The session

/** null: nobody has signed in. */
export const sessionQuery = queryOptions({
  queryKey: ['session'],
  staleTime: Infinity,
  queryFn: async (): Promise<Session | null> => {
    try {
      return keep(await ok(api.GET('/api/auth/session')))
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) return keep(null)
      throw error
    }
  },
})

function keep(session: Session | null): Session | null {
  setCsrfToken(session?.csrf_token ?? null)
  return session
}

/** Begins or ends the session on this page: nothing of one member is left for the next. */
export function enter(session: Session | null): void {
  queryClient.removeQueries({ predicate: (query) => query.queryKey[0] !== 'session' })
  queryClient.setQueryData(sessionQuery.queryKey, keep(session))
}

setOnSignedOut(() => enter(null))

/** Whom one can sign in with, beside a password. */
export const identityProviderQuery = queryOptions({
  queryKey: ['identity-provider'],
  staleTime: Infinity,
  refetchInterval: false,
  queryFn: () => ok(api.GET('/api/auth/oidc')),
})

/** How one signs in: with a password, with an identity provider, or with both. */
export const waysQuery = queryOptions({
  queryKey: ['ways'],
  queryFn: () => ok(api.GET('/api/auth/ways')),
})

export const signInsQuery = queryOptions({
  queryKey: ['sign-ins'],
  queryFn: () =>
    everything((cursor) =>
      ok(api.GET('/api/auth/sessions', { params: { query: { cursor, limit: LONG_PAGE } } })),
    ),
})

// One's own

export const myAllocationsQuery = queryOptions({
  queryKey: ['me', 'allocations'],
  meta: { live: ['standing'] },
  queryFn: () =>
    everything((cursor) =>
      ok(api.GET('/api/me/allocations', { params: { query: { cursor, limit: LONG_PAGE } } })),
    ),
})

export const myKeysQuery = queryOptions({
  queryKey: ['me', 'keys'],
  meta: { live: ['standing'] },
  queryFn: () =>
    everything((cursor) =>
      ok(api.GET('/api/me/keys', { params: { query: { cursor, limit: LONG_PAGE } } })),
    ),
})

export const myRequestsQuery = queryOptions({
  queryKey: ['me', 'requests'],
  meta: { live: ['requests'] },
  queryFn: async () => {
    const query = { limit: LONG_PAGE }
    return (await ok(api.GET('/api/me/requests', { params: { query } }))).items
  },
})

export const mySessionsQuery = queryOptions({
  queryKey: ['me', 'sessions'],
  meta: { live: ['sessions'] },
  queryFn: () =>
    everything((cursor) =>
      ok(api.GET('/api/me/realtime-sessions', { params: { query: { cursor, limit: LONG_PAGE } } })),
    ),
})

export const myModelsQuery = queryOptions({
  queryKey: ['me', 'models'],
  staleTime: 60_000,
  queryFn: async () => (await ok(api.GET('/api/me/models'))).items,
})

export interface CallFilters {
  allocation_id?: string | undefined
  key_id?: string | undefined
  model?: string | undefined
  endpoint?: string | undefined
  outcome?: Outcome | undefined
  from?: string | undefined
  to?: string | undefined
}

export const myCallsQuery = (filters: CallFilters) =>
  infiniteQueryOptions({
    queryKey: ['me', 'calls', filters],
    meta: { live: ['calls'] },
    initialPageParam: undefined as string | undefined,
    getNextPageParam: (last: { next?: string | null }) => last.next ?? undefined,
    queryFn: ({ pageParam: cursor }) =>
      ok(api.GET('/api/me/calls', { params: { query: { ...filters, cursor, limit: PAGE } } })),
  })

export interface UsageFilters {
  from?: string | undefined
  to?: string | undefined
  allocation_id?: string | undefined
}

export const myUsageQuery = (groups: readonly Dimension[], filters: UsageFilters) =>
  queryOptions({
    queryKey: ['me', 'usage', groups, filters],
    meta: { live: ['calls'] },
    queryFn: () =>
      ok(
        api.GET('/api/me/usage', {
          params: { query: { ...filters, group_by: groups.join(',') } },
        }),
      ),
  })

/** Asks everything under some names again, after something was changed. */
export function useRefresh() {
  const client = useQueryClient()
  return (...names: string[][]) =>
    Promise.all(names.map((queryKey) => client.invalidateQueries({ queryKey })))
}
