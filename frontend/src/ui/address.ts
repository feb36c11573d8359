/** What a page is asked to show is in its address: it can be kept, sent, and gone back to. */
import { useLocation, useNavigate } from '@tanstack/react-router'

/** Texts of the address by name, and how to change some of them; '' and undefined take one out. */
export function useAddress() {
  const given = useLocation().search as Record<string, string | undefined>
  const navigate = useNavigate()
  const change = (some: Record<string, string | undefined>) =>
    void navigate({
      to: '.',
      search: { ...given, ...some } as never,
      replace: true,
      resetScroll: false,
    })
  return [given, change] as const
}
