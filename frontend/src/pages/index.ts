/**
 * The pages there are: router and navigation are made from this table.
 *
 * A page without an icon is not in the navigation: others lead to it.
 */
import type { ComponentType } from 'react'

import type { Role } from '@/api/queries'
import type { IconName } from '@/ui/icons'

export interface PageEntry {
  path: string
  /** Its words: `nav.<name>`. */
  name: string
  icon?: IconName
  section: 'own' | 'admin'
  load: () => Promise<{ default: ComponentType }>
}

export const PAGES: readonly PageEntry[] = [
  { path: '/allocations', name: 'allocations', icon: 'wallet', section: 'own', load: () => import('./allocations') },
  { path: '/usage', name: 'usage', icon: 'chart', section: 'own', load: () => import('./usage') },
  { path: '/calls', name: 'calls', icon: 'list', section: 'own', load: () => import('./calls') },
  { path: '/keys', name: 'keys', icon: 'key', section: 'own', load: () => import('./keys') },
  { path: '/sessions', name: 'sessions', icon: 'live', section: 'own', load: () => import('./sessions') },
  { path: '/account', name: 'account', section: 'own', load: () => import('./account') },
  // Administration: what is spent, and what may be
  { path: '/admin/overview', name: 'adminOverview', icon: 'home', section: 'admin', load: () => import('./admin-overview') },
  { path: '/admin/allocations', name: 'adminAllocations', icon: 'wallet', section: 'admin', load: () => import('./admin-allocations') },
  { path: '/admin/requests', name: 'adminRequests', icon: 'inbox', section: 'admin', load: () => import('./admin-requests') },
  { path: '/admin/pools', name: 'adminPools', icon: 'pool', section: 'admin', load: () => import('./admin-pools') },
  { path: '/admin/token-pool', name: 'adminTokenPool', icon: 'shuffle', section: 'admin', load: () => import('./admin-token-pool') },
  { path: '/admin/calls', name: 'adminCalls', icon: 'list', section: 'admin', load: () => import('./admin-calls') },
  // What admins set up, and what they look after.
  { path: '/admin/models', name: 'adminModels', icon: 'model', section: 'admin', load: () => import('./admin-models') },
  { path: '/admin/prices', name: 'adminPrices', icon: 'tag', section: 'admin', load: () => import('./admin-prices') },
  { path: '/admin/members', name: 'adminMembers', icon: 'people', section: 'admin', load: () => import('./admin-members') },
  { path: '/admin/sessions', name: 'adminSessions', icon: 'live', section: 'admin', load: () => import('./admin-sessions') },
  { path: '/admin/alerts', name: 'adminAlerts', icon: 'bell', section: 'admin', load: () => import('./admin-alerts') },
  { path: '/admin/audit', name: 'adminAudit', icon: 'audit', section: 'admin', load: () => import('./admin-audit') },
  { path: '/admin/setup', name: 'wizard', section: 'admin', load: () => import('./setup-wizard') },
]

/** Who sees a section: auditors read all that admins do, and the server refuses them the rest. */
export function sees(role: Role, section: PageEntry['section']): boolean {
  return section === 'own' || role !== 'member'
}

/** Where one begins. */
export function home(role: Role): string {
  const first = PAGES.find((page) => page.section === 'admin')
  return first !== undefined && sees(role, 'admin') ? first.path : PAGES[0]!.path
}
